"""How figures of serving are put together, and that the load walks every step once."""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from benchmarks.http_load import Load, Walk, drive
from benchmarks.peers import PEERS
from benchmarks.processes import family, peak_mb
from benchmarks.serving import Figures, Row, _summary, plot, table
from benchmarks.skillet_service import step_body


def load(p50_ms: float) -> Load:
    return Load(p50_ms, 2 * p50_ms, 3 * p50_ms, 1000 / p50_ms)


def test_a_ratio_is_taken_within_a_round_before_the_median() -> None:
    floor, loads = [load(1.0), load(10.0), load(2.0)], [load(3.0), load(20.0), load(8.0)]
    figures = _summary(Row("it", 0, "", os.getpid(), lambda *_: []), loads, floor, 1)
    assert (figures.to_floor, figures.p50_ms, figures.p99_ms) == (3.0, 8.0, 16.0)
    assert figures.peak_mb == pytest.approx(peak_mb(family(os.getpid())), rel=0.1)


def test_figures_become_a_table_and_a_plot(tmp_path: Path) -> None:
    figures = [Figures(name, count, 1.5, 0.1, 0.2, 1234.5, 99.6) for count in (1, 16) for name in ("floor", "Skillet act")]
    assert table(figures).splitlines()[2] == "| floor | 1 | 1.50 | 0.100 | 0.200 | 1,234 | 100 |"
    plot(figures, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").stat().st_size > 1000


def test_bodies_are_json_with_the_step_where_it_belongs() -> None:
    assert json.loads(step_body([0.5, 1.0]) % 7)["step"] == 7
    for peer in PEERS:
        assert "0.5" in json.dumps(json.loads(peer.body("[0.5, 1.0]", 2) % 7))


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_every_step_of_every_walk_is_asked_for_once_and_in_order() -> None:
    seen: dict[str, list[int]] = {}

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.setdefault(self.path, []).append(body["step"])
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        found = drive(server.server_address[1], [Walk("/a", 5, 3), Walk("/b", 0)], '{"step": %d}', connections=1, seconds=1)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen["/a"] == [5, 6, 7]
    assert seen["/b"] == list(range(len(seen["/b"])))
    assert found.per_s > 0
