"""How a session's calls reach the service: requests over HTTP, or frames over a websocket (`clients.sdk.stream`)."""

from collections.abc import Mapping
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clients.sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from clients.sdk.client import SkilletClient


def plain(value: object) -> object:
    """A number or a truth value of numpy's, or a whole number of another kind, as one of Python's. Raises InvalidRequest for all else."""
    if isinstance(value, np.generic):
        return value.item()
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidRequest(
            "a value cannot be sent", expected="a number, text, a truth value or None", received=repr(value)[:80]
        ) from error


class Channel(Protocol):
    """Carries the control loop's calls of one session."""

    def call(
        self, what: str, body: Mapping[str, Any], *, key: str | None = None, repeatable: bool = True, budget_s: float | None = None
    ) -> Any:
        """Make the call ``what`` (its path below the session's, such as ``step``) and return its decoded reply. As `SkilletClient.call`."""
        ...

    def close(self) -> None:
        """Close what it has open. The session stays."""
        ...


class RestChannel:
    """Each call is a request."""

    def __init__(self, client: "SkilletClient", session_path: str) -> None:
        self._client, self._path = client, session_path

    def call(
        self, what: str, body: Mapping[str, Any], *, key: str | None = None, repeatable: bool = True, budget_s: float | None = None
    ) -> Any:
        """Make the call. Raises as `SkilletClient.call`."""
        return self._client.call("POST", f"{self._path}/{what}", body, key=key, repeatable=repeatable, budget_s=budget_s)

    def close(self) -> None:
        """The client's connections are not the session's."""
