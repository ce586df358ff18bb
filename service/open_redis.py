"""The Redis of a service, for commands that run beside it or without it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from service.errors import StartupError
from service.redis_server import EmbeddedRedis, socket_of
from service.settings import Settings, read_settings
from service.storage import connect


def data_dir_option() -> argparse.ArgumentParser:
    """``--data-dir``, as a parent of a command's parser and of its subcommands': it may stand before or after their names."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--data-dir", type=Path, default=argparse.SUPPRESS, help="where the embedded Redis keeps its data; default .skillet"
    )
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that say where Redis is. Raises StartupError."""
    return read_settings(**({"data_dir": options.data_dir} if "data_dir" in options else {}))


@contextmanager
def redis_of(settings: Settings, *, make: bool = False) -> Iterator["Redis"]:
    """A client of the Redis that is set, of the embedded one of a running service, or of one started for the moment.

    Without ``make``, a data directory that is not there raises StartupError.
    """
    running = socket_of(settings.data_dir)
    url = settings.redis_url or (f"unix://{running}" if running is not None and running.exists() else None)
    if url is not None:
        with connect(url, settings.redis_timeout_s) as client:
            if settings.redis_url or _answers(client):
                yield client
                return
    if not make and not settings.data_dir.is_dir():
        raise StartupError(f"expected a service's data in {settings.data_dir}, found no such folder; name another with --data-dir")
    server = EmbeddedRedis(settings.data_dir, strict=True)
    process = server.spawn()
    try:
        with connect(server.url, settings.redis_timeout_s) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
        server.close()


def _answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
