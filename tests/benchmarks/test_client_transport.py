"""The benchmark of the SDK's transport runs: its replies are those of a session as the SDK knows it."""

import subprocess
import sys


def test_every_way_is_measured():
    command = [sys.executable, "-m", "benchmarks.client_transport", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names = [line[:30].strip() for line in done.stdout.splitlines()]
    assert len(names) == 6
    assert {"raw socket", "SDK transport", "SDK session.step"} <= set(names)
