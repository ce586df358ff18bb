"""A TCP proxy in front of a service that delays, silences, cuts and corrupts what passes, as the test says at the moment."""

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Weather:
    """What happens to bytes. ``refuse``: connections are cut. ``silent``: nothing comes through. ``corrupt``: share with a flipped bit.

    ``reply``: what the client gets in place of a piece that the service sent.
    """

    refuse: bool = False
    silent: bool = False
    delay_s: float = 0.0
    cut: float = 0.0
    corrupt: float = 0.0
    reply: Callable[[bytes], bytes] = bytes


@dataclass
class Tally:
    """What was done."""

    cut: int = 0
    corrupted: int = 0
    delayed: int = 0
    silenced: int = 0


@dataclass
class ChaosProxy:
    target: tuple[str, int]
    seed: int = 0
    weather: Weather = field(default_factory=Weather)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def outage(self) -> None:
        self.weather.refuse = True
        self.cut_all()

    def clear(self) -> None:
        self.weather = Weather()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.weather.refuse:
                self.tally.cut += 1
                client.close()
                continue
            server = socket.create_connection(self.target)
            with self._lock:
                self._open |= {client, server}
            for source, sink, replies in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, replies), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                weather = self.weather
                if replies:
                    data = weather.reply(data)
                if weather.silent:
                    self.tally.silenced += 1
                    continue
                if weather.delay_s:
                    self.tally.delayed += 1
                    time.sleep(weather.delay_s)
                if self._random.random() < weather.cut:
                    self.tally.cut += 1
                    sink.sendall(data[: self._random.randrange(len(data))])
                    break
                if self._random.random() < weather.corrupt:
                    self.tally.corrupted += 1
                    data = bytearray(data)
                    data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
