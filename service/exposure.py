"""Whether a service may listen where it is told to: beyond this machine only with tokens, or when somebody says that it shall be open."""

import logging

from redis import Redis

from service.doors import is_loopback
from service.errors import StartupError
from service.settings import Settings
from service.tokens import TokenStore

_log = logging.getLogger(__name__)


def check_exposure(settings: Settings, redis: "Redis") -> None:
    """Raise StartupError for an address that others can reach while nobody holds a token; warn of what is open all the same."""
    if is_loopback(settings.host):
        return
    if settings.insecure_no_auth:
        _log.warning("nobody is asked for a token: whoever reaches %s can drive every robot (--insecure-no-auth)", settings.host)
        return
    if not TokenStore(redis).all():
        raise StartupError(
            f"will not listen on {settings.host}, which other machines can reach, before there is a token: make one with "
            "'python -m service tokens create --role admin --name NAME' (same --data-dir or SKILLET_REDIS_URL), "
            "or let everybody in with --insecure-no-auth"
        )
