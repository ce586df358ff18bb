"""Frames of `/v1/stream`, offered to the short way before ASGI's messages and tasks (`service.lane`); everything else is uvicorn's."""

from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.protocol import State

EXTENSION: Final = "skillet.direct"
"""Where an application finds the protocol, among the extensions of a connection's scope."""


class DirectStream(WebSocketsSansIOProtocol):
    """uvicorn's protocol with the short way in front.

    ``take``, set by the application, is given each whole binary message that finds nothing before it, and says whether it will be
    answered with `finish` (or given back with `go_around`); until then what comes is held, and nothing more is read.
    """

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.take: Callable[[bytes], bool] | None = None
        self._underway = self._stopping = False
        self._held: list[Frame] = []

    def handle_connect(self, event: Any) -> None:
        """A handshake."""
        super().handle_connect(event)
        if hasattr(self, "scope"):  # not one that was refused
            scope = cast("dict[str, Any]", self.scope)
            scope["extensions"][EXTENSION] = self

    async def send(self, message: Any) -> None:
        """What the application sends. uvicorn forgets that a handshake is over with a whole reply that refuses it, and logs an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_bytes(self, event: Frame) -> None:
        """The first or only frame of a binary message."""
        if self._underway:
            self._held.append(event)
            self.transport.pause_reading()
            return
        if self.take is not None and event.fin and self.queue.empty() and self.writable.is_set() and not self.close_sent:
            self._underway = True  # before, since the answer may come at once
            if self.take(bytes(event.data)):
                return
            self._underway = False
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A further frame of a message."""
        if self._held:
            self._held.append(event)
        else:
            super().handle_cont(event)

    def handle_text(self, event: Frame) -> None:
        """The first or only frame of a text message."""
        if self._underway:
            self._held.append(event)
        else:
            super().handle_text(event)

    def finish(self, data: bytes) -> None:
        """Send the reply."""
        if self.conn.state is State.OPEN and not self.disconnected:
            self.conn.send_binary(data)
            self.transport.write(b"".join(self.conn.data_to_send()))
        self._go_on()

    def go_around(self, data: bytes, noted: dict[str, Any]) -> None:
        """Let the application have a message after all, with what was noted of it: that must not be done again."""
        if not self.disconnected:
            self.queue.put_nowait(cast(Any, {**noted, "type": "websocket.receive", "bytes": data}))
        self._go_on()

    def shutdown(self) -> None:
        """The server stops: close the connection, but after the reply that is under way."""
        if self._underway:
            self._stopping = True
        else:
            super().shutdown()

    def _go_on(self) -> None:
        self._underway = False
        if self._stopping:
            super().shutdown()
        held, self._held = self._held, []
        if held and not self.disconnected:
            self.transport.resume_reading()
            for event in held:
                self._again(event)

    def _again(self, event: Frame) -> None:
        handlers = {Opcode.CONT: self.handle_cont, Opcode.TEXT: self.handle_text, Opcode.BINARY: self.handle_bytes}
        handlers[event.opcode](event)
