"""The service's application in this process as the SDK's transport."""

from collections.abc import Callable, Mapping

from fastapi.testclient import TestClient

from clients.sdk import Reply
from clients.sdk.errors import ConnectionLost

Broken = Callable[[str, bytes | None], str | None]


class InProcess:
    """Carries requests into the application. ``broken`` says of each (path, body) whether its request or its reply is lost."""

    def __init__(self, api: TestClient, broken: Broken = lambda path, body: None) -> None:
        self.api, self.broken = api, broken

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
        lost = self.broken(path, body)
        if lost == "request":
            raise ConnectionLost("cut before the service read it", request_sent=True)
        answer = self.api.request(method, path, content=body, headers=dict(headers))
        if lost == "reply":
            raise ConnectionLost("cut after the service acted on it", request_sent=True)
        return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.content)

    def close(self) -> None:
        pass
