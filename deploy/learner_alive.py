"""Health of a learner container, ``python -m deploy.learner_alive``: status 0 if this host's learner has asked Redis for work lately."""

import socket
import sys
from typing import Any, cast

from redis.exceptions import RedisError, ResponseError

from service.keys import JOBS, LEARNERS
from service.settings import Settings
from service.storage import connect

SILENT_S = 30.0
"""A learner asks several times a second, and between two slices of work; one update takes milliseconds."""


def silence_s(redis_url: str, host: str, timeout_s: float) -> float:
    """Seconds since a learner of this host last asked for work; infinite if none ever did. Raises RedisError."""
    with connect(redis_url, timeout_s) as redis:
        try:
            learners = cast(list[dict[str, Any]], redis.xinfo_consumers(JOBS, LEARNERS))
        except ResponseError:  # no learner of any host was ever here: neither stream nor group exists
            return float("inf")
    return min((learner["idle"] / 1000 for learner in learners if learner["name"].decode().startswith(f"{host}-")), default=float("inf"))


def main() -> int:
    """Returns the exit status."""
    settings = Settings()
    try:
        silent_s = silence_s(str(settings.redis_url), socket.gethostname(), settings.redis_timeout_s)
    except (RedisError, ValueError) as error:
        print(f"Redis does not answer: {error}")
        return 1
    print(f"the learner asked for work {silent_s:.1f} s ago")
    return int(silent_s > SILENT_S)


if __name__ == "__main__":
    sys.exit(main())
