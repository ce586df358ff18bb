"""Clients that are closed when their test ends."""

from contextlib import ExitStack

import pytest

from clients.sdk import SkilletClient


@pytest.fixture
def connect():
    with ExitStack() as open_clients:
        yield lambda *arguments, **options: open_clients.enter_context(SkilletClient(*arguments, **options))
