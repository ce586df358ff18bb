"""Inputs that are nearly right: seeds with some of their bytes changed. The same number gives the same input."""

import random
from collections.abc import Callable, Iterator, Sequence

INTERESTING = bytes((0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xCA, 0xCB, 0xD9, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF)) + b'{}[]":,-.e0019nN\\'
BLOCKS = (
    b"\x91", b"\x81\xa1a", b"[", b'{"a":', *(kind + b"\xff" * 4 for kind in (b"\xdd", b"\xdf", b"\xdb", b"\xc6")),
    b"1e999", b"-0", b"NaN", b"Infinity", b"9" * 400, b'"\\ud800"', b"\xed\xa0\x80", b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f",
)  # fmt: skip


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _replace(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(INTERESTING)


def _cut(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randrange(1, 9)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.randrange(1, 33)]


def _insert(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.choice(BLOCKS) * rng.choice((1, 1, 1, 2, 50, 3000))


def _overwrite(rng: random.Random, data: bytearray) -> None:
    block = rng.choice(BLOCKS)
    start = rng.randrange(len(data) + 1)
    data[start : start + len(block)] = block


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


OPERATIONS: Sequence[Callable[[random.Random, bytearray], None]] = (
    _flip, _flip, _flip, _replace, _replace, _replace, _cut, _repeat, _insert, _overwrite, _truncate,
)  # fmt: skip


def inputs(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` inputs: one in twenty random bytes, the others a seed after one to six changes, some grafted onto another seed."""
    for number in range(count):
        rng = random.Random(seed * 10**9 + number)
        if rng.random() < 0.05:
            yield rng.randbytes(rng.randrange(200))
            continue
        data = bytearray(rng.choice(seeds))
        if rng.random() < 0.1:
            other = rng.choice(seeds)
            data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
        for _ in range(rng.randrange(1, 7)):
            rng.choice(OPERATIONS)(rng, data)
        yield bytes(data)
