"""Logs on standard error: lines for people by default, one JSON object a line with ``SKILLET_LOG_FORMAT=json``.

There is no line for each request unless ``SKILLET_ACCESS_LOG`` asks for it. What a line is about beyond its message is given as ``extra``
to the logger, under a name of `FIELDS`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

LogFormat = Literal["human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

FIELDS: Final = ("request_id", "session_id", "method", "path", "status", "duration_ms", "code", "trace_id")
"""Names of what a line may carry beside its message."""


def set_up_logs(form: LogFormat, level: LogLevel = "info") -> None:
    """Send everything that this process logs to standard error in one form. Called again, the newest call counts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else HumanLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class HumanLines(logging.Formatter):
    """Time, level, logger, message, and the fields as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        return " ".join([super().formatMessage(record), *(f"{name}={_plain(value)}" for name, value in _fields(record).items())])


class JsonLines(logging.Formatter):
    """One object a line: ``at`` (UTC, milliseconds), ``level``, ``logger``, ``pid``, ``message``, the fields, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}


def _plain(value: object) -> str:
    """Without line feeds and other control characters: a path comes from whoever asks."""
    return str(value).encode("unicode_escape").decode()
