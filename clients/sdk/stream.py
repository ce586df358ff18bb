"""A session's calls as msgpack frames over a websocket. Needs ``websockets`` and ``msgspec``: ``pip install skillet[stream]``.

`websockets`' sans-I/O protocol around a blocking socket, not its threaded client: the same echo took 106 us instead of 187
(``python -m benchmarks.stream``).
"""

import hashlib
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from clients.sdk.channel import plain
from clients.sdk.errors import ConnectionLost, DamagedReply, RequestTimeout, SkilletError, UnexpectedReply, from_problem
from clients.sdk.transport import HttpTransport, is_quiet

if TYPE_CHECKING:
    from clients.sdk.client import SkilletClient

_PATH: Final = "/v1/stream"
_PROTOCOL: Final = "skillet.v1.digest"
_DIGEST_BYTES: Final = 12
_HANDSHAKES: Final = 6
_FRAMES: Final = {"episodes": "start", "episodes/end": "end"}
_WITHOUT_BODY: Final = frozenset({"start", "end"})


class StreamChannel:
    """The connection of one session: opened with the first call, and again after it was lost."""

    def __init__(self, client: "SkilletClient", transport: HttpTransport, session_id: str, headers: Mapping[str, str]) -> None:
        import msgspec

        self._client, self._transport, self._session_id, self._headers = client, transport, session_id, headers
        self._encode, self._decode = msgspec.msgpack.Encoder(enc_hook=plain).encode, msgspec.msgpack.Decoder().decode
        self._connection: Connection | None = None
        self._number = 0

    def call(
        self, what: str, body: Mapping[str, Any], *, key: str | None = None, repeatable: bool = True, budget_s: float | None = None
    ) -> Any:
        """Make the call. Raises as `SkilletClient.call`."""
        kind = _FRAMES.get(what, what)
        frame: dict[str, Any] = {"type": kind} if kind in _WITHOUT_BODY else {"type": kind, "body": body}
        if key is not None:
            frame["key"] = key
        if budget_s is not None:
            frame |= {"deadline_ms": budget_s * 1000, "sent_ms": time.monotonic() * 1000}
        return self._client.retried(lambda timeout_s: self._ask(frame, timeout_s), repeatable=repeatable, budget_s=budget_s)

    def close(self) -> None:
        """Close the connection. The session stays open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, frame: dict[str, Any], timeout_s: float) -> Any:
        stop_at = time.monotonic() + timeout_s
        if self._connection is None or not self._connection.usable():
            self.close()
            self._connection = self._connect(timeout_s)
            try:
                self._exchange({"type": "attach", "session_id": self._session_id}, stop_at)
            except SkilletError:
                self.close()
                raise
        return self._exchange(frame, stop_at)

    def _connect(self, timeout_s: float) -> "Connection":
        """Nothing tells a refusal from a handshake that was damaged on its way, but that it comes again, and always the same."""
        statuses = set[int | None]()
        for tries_left in reversed(range(_HANDSHAKES)):
            try:
                return Connection(self._transport, self._headers, timeout_s)
            except UnexpectedReply as error:
                statuses.add(error.status)
                if tries_left == 0 and self._number == 0 and len(statuses) == 1:
                    raise
                if tries_left == 0:  # it had been open, or the link is bad
                    raise ConnectionLost(f"the stream cannot be opened: {error.detail}", request_sent=True) from error
        raise AssertionError("unreachable")

    def _exchange(self, frame: dict[str, Any], stop_at: float) -> Any:
        assert self._connection is not None
        self._number += 1
        sent = _sealed(self._encode({**frame, "id": self._number}))
        try:
            self._connection.send(sent, stop_at)
            while True:
                reply = self._read(self._connection.receive(stop_at), sent)
                if reply is not None:
                    break
        except (ConnectionLost, DamagedReply):
            self.close()
            raise
        if reply["status"] >= 400:
            raise from_problem(reply["status"], reply["body"], None)
        return reply["body"]

    def _read(self, data: bytes, sent: bytes) -> Any:
        """The reply to the newest frame; None for one to an earlier frame, which nobody waited for any longer."""
        try:
            reply = self._decode(data[_DIGEST_BYTES:])
            earlier = 0 < reply["id"] < self._number
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedReply("the reply is no frame", action="look at the link; use TLS", request_sent=True) from error
        if earlier:
            return None
        if data[:_DIGEST_BYTES] != _digest(sent[:_DIGEST_BYTES] + data[_DIGEST_BYTES:]):
            raise DamagedReply(
                "the reply was damaged on its way: it does not fit its digest", action="look at the link; use TLS", request_sent=True
            )
        return reply


class Connection:
    """A websocket on a blocking socket, used by one thread. Whole binary messages go out and come in."""

    def __init__(
        self,
        transport: HttpTransport,
        headers: Mapping[str, str],
        timeout_s: float,
        path: str = _PATH,
        subprotocols: Sequence[str] = (_PROTOCOL,),
    ) -> None:
        from websockets.client import ClientProtocol
        from websockets.exceptions import WebSocketException
        from websockets.frames import Opcode
        from websockets.protocol import State
        from websockets.uri import parse_uri

        self._url, self._open, self._binary, self._close = transport.url, State.OPEN, Opcode.BINARY, Opcode.CLOSE
        self._opcodes, self._refusal = (Opcode.BINARY, Opcode.CONT), WebSocketException
        url = f"ws{transport.url.removeprefix('http')}{transport.prefix}{path}"
        self._protocol = ClientProtocol(parse_uri(url), subprotocols=list(subprotocols) or None, max_size=None)  # type: ignore[arg-type]
        self._events = deque[Any]()  # come and not yet looked at: one read may bring several messages
        self._parts: list[bytes] = []
        self._socket: socket.socket = transport.dial(timeout_s)
        request = self._protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        try:
            self._shake_hands(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def usable(self) -> bool:
        """Whether the service, as far as is known here, has not closed the connection. Answers pings that have come."""
        try:
            while not is_quiet(self._socket):
                self._take(time.monotonic() + 1.0)
        except ConnectionLost:
            return False
        return self._protocol.state is self._open

    def send(self, message: bytes, stop_at: float) -> None:
        """Send a message. Raises ConnectionLost, RequestTimeout."""
        try:
            self._protocol.send_binary(message)
        except self._refusal as error:  # a close came with the last reply
            raise self._lost(request_sent=False) from error
        self._flush(stop_at)

    def receive(self, stop_at: float) -> bytes:
        """The next message. Raises ConnectionLost, RequestTimeout."""
        while True:
            self._events.extend(self._protocol.events_received())
            while self._events:
                event = self._events.popleft()
                opcode = getattr(event, "opcode", None)
                if opcode is self._close:
                    raise self._lost()
                if opcode in self._opcodes:
                    self._parts.append(event.data)
                    if event.fin:
                        message, self._parts = b"".join(self._parts), []
                        return message
            self._take(stop_at)

    def close(self) -> None:
        """Say goodbye, and close."""
        try:
            if self._protocol.state is self._open:
                self._protocol.send_close(1000)
                self._flush(time.monotonic() + 1.0)
        except (ConnectionLost, RequestTimeout):
            pass
        self._socket.close()

    def _shake_hands(self, stop_at: float) -> None:
        self._flush(stop_at)
        while not (events := self._protocol.events_received()):
            if self._protocol.handshake_exc is not None:
                break
            self._take(stop_at)
        failure = self._protocol.handshake_exc
        if failure is not None:
            status = getattr(events[0], "status_code", None) if events else None
            raise UnexpectedReply(
                f"{self._url} opens no stream: {failure}",
                status=status,
                expected=f"a websocket at {_PATH}",
                action="check the address, the token, and that the service is as new as this SDK",
            ) from failure
        self._events.extend(events[1:])

    def _take(self, stop_at: float) -> None:
        """Read once, and answer a ping."""
        try:
            self._socket.settimeout(max(stop_at - time.monotonic(), 1e-4))
            data = self._socket.recv(65536)
        except TimeoutError as error:
            raise RequestTimeout(
                f"{self._url} kept silent", action="raise timeout_s, or look at the service's log", request_sent=True
            ) from error
        except OSError as error:
            raise self._lost() from error
        if not data:
            self._protocol.receive_eof()
            raise self._lost()
        self._protocol.receive_data(data)
        self._flush(stop_at)

    def _flush(self, stop_at: float) -> None:
        try:
            self._socket.settimeout(max(stop_at - time.monotonic(), 1e-4))
            self._socket.sendall(b"".join(self._protocol.data_to_send()))
        except OSError as error:  # after a timeout within a frame, too, nothing else can be sent
            raise self._lost() from error

    def _lost(self, *, request_sent: bool = True) -> ConnectionLost:
        closed = self._protocol.close_rcvd
        code = f" (code {closed.code})" if closed is not None else ""
        return ConnectionLost(f"{self._url} closed the connection{code}", action="look at the service's log", request_sent=request_sent)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _sealed(data: bytes) -> bytes:
    return _digest(data) + data
