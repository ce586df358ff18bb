"""How a request reaches the service: a small protocol, and HTTP/1.1 over kept-alive connections.

A socket of the standard library, opened by its HTTP client, not urllib3: it costs a fraction of it per request
(``python -m benchmarks.client_transport``), and it is known exactly whether bytes of a request had left when it failed, on which safe
retries stand.
"""

import http.client
import select
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from clients.sdk.errors import ConnectionFailed, ConnectionLost, InvalidRequest, NothingListening, NotHttp, RequestTimeout, TlsMismatch
from clients.sdk.http_wire import Reply, read_reply, write_request

_TLS_RECORD = "\x15\x03"  # first bytes of a TLS alert, which a TLS server sends in answer to plain HTTP


class Transport(Protocol):
    """Carries one request to the service and its reply back."""

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Send and wait for the whole reply, whatever its status. Raises ConnectionFailed."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class HttpTransport:
    """HTTP/1.1 with kept-alive connections; safe to share between threads, each request takes an idle connection or opens one."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, ca_file: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError as error:
            raise InvalidRequest(f"{url!r} has no valid port: {error}", expected="http://HOST:PORT", received=url) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest("the service's address cannot be used", expected="http://HOST:PORT or https://HOST:PORT", received=url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._host_header = parts.netloc.rpartition("@")[2]
        self._host, self._port, self.prefix = parts.hostname, port, parts.path.rstrip("/")
        self._tls = (tls or _tls_context(ca_file)) if parts.scheme == "https" else None
        self._idle: deque[http.client.HTTPConnection] = deque()

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Send and wait for the whole reply, whatever its status. Raises ConnectionFailed."""
        request = write_request(method, self.prefix + path, self._host_header, body, headers)
        connection = self._take(timeout_s)
        try:
            connection.sock.sendall(request)
            reply, reusable = read_reply(connection.sock, method)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._failure(error, timeout_s, request_sent=True) from error
        except BaseException:
            connection.close()  # a half-read connection must not serve the next request
            raise
        if reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def dial(self, timeout_s: float) -> socket.socket:
        """A socket of one's own, connected to the service, with TLS where the address says so. Raises ConnectionFailed."""
        connected = self._connect(timeout_s).sock
        assert isinstance(connected, socket.socket)
        return connected

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()

    def _take(self, timeout_s: float) -> http.client.HTTPConnection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect(timeout_s)
            if is_quiet(connection.sock):
                connection.sock.settimeout(timeout_s)
                return connection
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._failure(error, timeout_s, request_sent=False) from error
        return connection

    def _failure(self, error: Exception, timeout_s: float, *, request_sent: bool) -> ConnectionFailed:
        kind, detail, action = ConnectionFailed, f"the connection to {self.url} failed: {error}", "check the address and the network"
        match error:
            case ConnectionRefusedError():
                kind, detail = NothingListening, f"nothing listens at {self.url}"
                action = "start the service there ('python -m service --bundle bundles/maze') or correct the address"
            case socket.gaierror():
                kind, detail, action = NothingListening, f"the host {self._host!r} has no address", "correct the address"
            case ssl.SSLCertVerificationError():
                kind, detail = TlsMismatch, f"the certificate of {self.url} is not trusted: {error.verify_message}"
                action = "name a file of certificates that vouch for it: ca_file, or SKILLET_CA_FILE"
            case ssl.SSLError():
                kind, detail, action = TlsMismatch, f"no TLS at {self.url} ({error.reason})", "use http:// if the service speaks plain HTTP"
            case TimeoutError():
                kind, detail = RequestTimeout, f"{self.url} kept silent for {timeout_s:g} s"
                action = "raise timeout_s, or look at the service's log"
            case http.client.RemoteDisconnected() | http.client.IncompleteRead() | ConnectionError():
                kind, detail = ConnectionLost, f"{self.url} closed the connection before its reply was complete"
                action = "look at the service's log; use https:// if it speaks TLS"
            case http.client.BadStatusLine() if str(error).startswith(_TLS_RECORD):
                kind, detail, action = TlsMismatch, f"{self.url} answers with TLS", "use https://"
            case http.client.HTTPException():
                kind, detail = NotHttp, f"what answers at {self.url} does not speak HTTP (it said {str(error)[:60]!r})"
                action = "correct the port"
        return kind(detail, action=action, request_sent=request_sent)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequest(
            f"the certificates in {ca_file!r} cannot be read: {error}", expected="a PEM file with certificates", received=ca_file
        ) from error


def is_quiet(connected: socket.socket | None) -> bool:
    """Whether an idle connection can be used: one that has something to read was closed by the server, or is out of step."""
    if connected is None:
        return False
    if not hasattr(select, "poll"):  # Windows
        return not select.select([connected], [], [], 0)[0]
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return not poll.poll(0)
