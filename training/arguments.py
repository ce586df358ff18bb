"""Numbers on command lines: refused with what was expected, before anything is run.

The clients have their own: neither package imports the other.
"""

import argparse
from collections.abc import Callable


def whole_number(lowest: int) -> Callable[[str], int]:
    """A type for argparse: a whole number of at least ``lowest``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, got {text!r}")
        return value

    return read
