"""What an exception means to a client, whichever protocol it speaks."""

import logging
import time
from typing import Final

from redis.exceptions import RedisError

from service.errors import InternalError, ServiceError
from service.storage import is_outage, unavailable

_log = logging.getLogger(__name__)
_OUTAGE_LOG_S: Final = 5.0


class Outages:
    """Logs that Redis does not answer, not more often than every few seconds however many requests fail."""

    def __init__(self) -> None:
        self._logged_at = -_OUTAGE_LOG_S

    def saw(self, error: RedisError) -> None:
        """Log it unless that was just done."""
        if time.monotonic() - self._logged_at >= _OUTAGE_LOG_S:
            self._logged_at = time.monotonic()
            _log.error("Redis does not answer: %s: %s", type(error).__name__, error)


def as_problem(error: Exception, outages: Outages) -> ServiceError:
    """The error that a client is told of. What it must not see, such as a traceback, is for the caller to log."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RedisError) and is_outage(error):
        outages.saw(error)
        return unavailable(error)
    return InternalError("the service failed; its log has the cause", action="Report it with the request_id.")
