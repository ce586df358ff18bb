"""OpenAPI from the wire types: the same structs that decode and encode also document, so the two cannot differ."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import schemas
from service.roles import Access, Rules

_REF = "#/components/schemas/{name}"
_TOKENS = "A token of `python -m service tokens create`, where the service asks for one. Its role decides what it may do."


def documented(reply: type, *, request: type | None = None, status: int = 200, example: Any = None) -> dict[str, Any]:
    """``openapi_extra`` of a route with these wire types."""
    problem = {"description": "A problem (RFC 9457)", "content": {"application/problem+json": {"schema": _ref(schemas.Problem)}}}
    extra: dict[str, Any] = {
        "responses": {
            str(status): {"description": (reply.__doc__ or "").strip(), "content": {"application/json": {"schema": _ref(reply)}}},
            "4XX": problem,
            "5XX": problem,
        }
    }
    if request is not None:
        content = {"schema": _ref(request)} | ({"example": example} if example is not None else {})
        extra["requestBody"] = {"required": True, "content": {"application/json": content}}
    return extra


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        types = [kind for kind in vars(schemas).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__doc__]
        _, components = msgspec.json.schema_components([kind for kind in types if kind is not schemas.Request], ref_template=_REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": _TOKENS}}
        document["security"] = [{"token": []}]
        rules = Rules()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                operation.get("responses", {}).pop("422", None)  # FastAPI's own form of it; ours is a problem
                if (found := rules.find(method.upper(), path)) and found[0].stranger is Access.YES:
                    operation["security"] = []
        _link(document)
        app.openapi_schema = document
    return app.openapi_schema


def _link(document: dict[str, Any]) -> None:
    """Say which calls a reply's numbers go into: the session that was opened, the episode that was started."""
    opened = document["paths"]["/v1/sessions"]["post"]["responses"]["201"].setdefault("links", {})
    started = document["paths"]["/v1/sessions/{session_id}/episodes"]["post"]["responses"]["201"].setdefault("links", {})
    for path, operations in document["paths"].items():
        if "{session_id}" not in path:
            continue
        for operation in operations.values():
            name, session = operation["operationId"], {"session_id": "$response.body#/session_id"}
            opened[name] = {"operationId": name, "parameters": session}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example", {})
            if "episode" in body:
                filled = {**body, "episode": "$response.body#/episode"}
                started[name] = {"operationId": name, "parameters": {"session_id": "$request.path.session_id"}, "requestBody": filled}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)} if issubclass(kind, msgspec.Struct) else {"type": "object"}
