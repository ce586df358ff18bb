"""The floor: an ASGI application that reads the body and answers with the same action each time."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

ACTION = {"episode": 0, "step": 1, "action": [0.1, -0.2], "skill_step": 1, "policy_version": 0, "task_version": 0, "phase": "exploring"}
REPLY = json.dumps({**ACTION, "episode_over": False, "replayed": False}).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(REPLY)).encode())]


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer every request with the same action."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REPLY})
