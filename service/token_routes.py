"""The calls about tokens, for admins. ``python -m service tokens`` does the same from the machine that holds the Redis."""

import logging

from fastapi import APIRouter, Request, Response

from service import schemas, views
from service.doors import Caller, caller_of
from service.errors import Forbidden
from service.openapi import documented
from service.parts import parts_of
from service.wire import read, reply

_log = logging.getLogger(__name__)
tokens = APIRouter(prefix="/v1/tokens", tags=["tokens"], default_response_class=Response)


@tokens.get("", openapi_extra=documented(schemas.TokenList))
async def list_tokens(request: Request) -> Response:
    """List the tokens, without their secrets."""
    _require_token(request)
    return reply(schemas.TokenList([views.token_view(token) for token in parts_of(request).tokens.all()]))


@tokens.post(
    "",
    status_code=201,
    openapi_extra=documented(schemas.TokenView, request=schemas.CreateToken, status=201, example={"role": "robot", "name": "arm-3"}),
)
async def create_token(request: Request) -> Response:
    """Make a token; it is told in this reply only."""
    admin, wanted = _require_token(request), await read(request, schemas.CreateToken)
    token, text = parts_of(request).tokens.create(wanted.role, wanted.name, wanted.lifetime_s)
    _log.info("%s made token %s of the role %s for %s", admin.name, token.token_id, token.role, token.name)
    return reply(views.token_view(token, text), 201)


@tokens.delete("/{token_id}", openapi_extra=documented(schemas.TokenView))
async def revoke_token(request: Request, token_id: str) -> Response:
    """Let a token open nothing any more."""
    admin = _require_token(request)
    token = parts_of(request).tokens.revoke(token_id)
    _log.info("%s revoked token %s of %s", admin.name, token.token_id, token.name)
    return reply(views.token_view(token))


def _require_token(request: Request) -> Caller:
    """Who asks. Where nobody needs a token, nobody makes one that would still open doors when they are closed."""
    caller = caller_of(request)
    if caller.token_id is None:
        raise Forbidden(
            "this service asks nobody for a token, so it cannot know whether you may make any",
            action="Make tokens on the machine that holds the Redis: python -m service tokens create.",
        )
    return caller
