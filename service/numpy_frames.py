"""Arrays in msgpack as openpi's client sends and reads them: maps with the keys ``__ndarray__`` or ``__npgeneric__``. Nothing is unpickled.

Only numbers and booleans are read: no objects, no strings, no structures. Sizes are checked before anything is made.
"""

import math
import re
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.schemas import LARGEST_REWARD

_DTYPE: Final = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")
_MOST_DIMENSIONS: Final = 32
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def pack(message: dict[str, Any]) -> bytes:
    """A message whose arrays are at its top level."""
    return _encoder.encode({key: _packed(value) if isinstance(value, np.ndarray) else value for key, value in message.items()})


def unpack(data: bytes) -> dict[str, Any]:
    """A message as it came, its arrays still packed (`number`, `vector`). Raises InvalidRequest unless it is a msgpack map with names."""
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, TypeError) as error:
        raise InvalidRequest(f"the message is no valid msgpack: {error}"[:300], expected="a msgpack map") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise InvalidRequest("the message is no observation", expected="a msgpack map with names", received=type(message).__name__)
    return message


def vector(value: Any, name: str) -> list[float]:
    """A list or array [S] as numbers. Raises InvalidRequest."""
    if isinstance(value, dict):
        array = _array(value, name)
        if array.ndim != 1:
            raise misfit(name, "one dimension", f"shape {list(array.shape)}")
        return [float(each) for each in array.tolist()]
    if not isinstance(value, list) or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        raise misfit(name, "an array or a list of numbers", type(value).__name__)
    try:
        return [float(each) for each in value]
    except OverflowError as error:
        raise misfit(name, "numbers that float64 can hold", "a larger one") from error


def number(value: Any, name: str) -> float:
    """A reward, as Python's number or numpy's. Raises InvalidRequest."""
    if isinstance(value, dict):
        value = _scalar(value, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_REWARD:
        raise misfit(name, f"a number of at most {LARGEST_REWARD:g} either way", repr(value)[:40])
    return float(value)


def flag(value: Any, name: str) -> bool:
    """A truth value, of Python's or numpy's. Raises InvalidRequest."""
    if isinstance(value, dict):
        value = _scalar(value, name)
    if not isinstance(value, bool):
        raise misfit(name, "true or false", repr(value)[:40])
    return value


def _packed(array: NDArray[Any]) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def _scalar(value: dict[Any, Any], name: str) -> Any:
    if b"__npgeneric__" in value:
        return value.get(b"data")
    array = _array(value, name)
    if array.size != 1:
        raise misfit(name, "one value", f"shape {list(array.shape)}")
    return array.reshape(()).item()


def _array(value: dict[Any, Any], name: str) -> NDArray[Any]:
    dtype, shape, data = (value.get(key) for key in (b"dtype", b"shape", b"data"))
    if b"__ndarray__" not in value or not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise misfit(name, "an array of numbers or booleans", repr(dtype)[:40])
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(type(each) is int and 0 <= each < 2**31 for each in shape):
        raise misfit(name, "a shape of whole numbers", repr(shape)[:60])
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        raise misfit(
            name, f"{wanted} bytes for {dtype} of shape {shape}", f"{len(data) if isinstance(data, bytes) else type(data).__name__}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def misfit(name: str, expected: str, received: str) -> InvalidRequest:
    """The problem of a value that does not fit."""
    return InvalidRequest(f"{name}: expected {expected}, got {received}"[:300], expected=expected, received=received)
