"""Whether a service may listen where it is told to: beyond this machine only with tokens, or when somebody says that it shall be open."""

import logging
import ssl
import sys
from typing import Final

from redis import Redis

from service.doors import is_loopback
from service.errors import StartupError
from service.keys import FIRST_TOKEN
from service.roles import Role
from service.settings import Settings
from service.tokens import TokenStore

_log = logging.getLogger(__name__)
_MAKING_S: Final = 60


def check_tls(settings: Settings) -> None:
    """Raise StartupError for a certificate or key that cannot be used."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise StartupError(f"TLS needs both a certificate and its key, got only {cert or key}: pass --tls-cert and --tls-key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")  # never ask at the terminal
    except (OSError, ValueError) as error:
        raise StartupError(
            f"cannot use the certificate {cert} with the key {key}: {error}; expected PEM files, the key without a password"
        ) from error


def check_exposure(settings: Settings, redis: "Redis") -> None:
    """Raise StartupError for an address that others can reach while nobody holds a token; warn of what is open all the same.

    With ``first_token`` an admin's token is made and printed instead.
    """
    if is_loopback(settings.host):
        return
    if settings.insecure_no_auth:
        _log.warning("nobody is asked for a token: whoever reaches %s can drive every robot (--insecure-no-auth)", settings.host)
        return
    tokens = TokenStore(redis)
    if tokens.all():
        return
    if settings.first_token:
        _make_first(tokens, redis)
    else:
        raise StartupError(
            f"will not listen on {settings.host}, which other machines can reach, before there is a token: make one with "
            "'python -m service tokens create --role admin --name NAME' (same --data-dir or SKILLET_REDIS_URL), "
            "or have one made and printed with --first-token, or let everybody in with --insecure-no-auth"
        )


def _make_first(tokens: TokenStore, redis: "Redis") -> None:
    if redis.set(FIRST_TOKEN, 1, nx=True, ex=_MAKING_S):  # services that start on one Redis at the same time make one between them
        token, text = tokens.create(Role.ADMIN, "first")
        sys.stderr.write(
            f"skillet: nobody had a token, so one was made: {token.token_id}, for an admin. It is not shown again:\n{text}\n"
            "Make others with it (POST /v1/tokens, or 'python -m service tokens create'), then revoke it.\n"
        )
        sys.stderr.flush()
