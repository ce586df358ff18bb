"""Keeps what an API process knows of the tokens fresh, beside its event loop."""

import threading
from typing import Final

from redis.exceptions import RedisError

from service.tokens import KnownTokens

INTERVAL_S: Final = 0.5
"""Between two looks: so long, and the moment of a round trip, may a revoked token go on working."""


class TokenWatch:
    """A thread that looks for changed tokens. While Redis does not answer, look-ups find that out by themselves."""

    def __init__(self, tokens: KnownTokens, interval_s: float = INTERVAL_S) -> None:
        self._tokens, self._interval_s = tokens, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tokens", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._tokens.refresh()
            except RedisError:
                continue
