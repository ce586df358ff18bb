"""What an operator looks at: health, metrics, logs, traces."""

import json
import logging
import subprocess
import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.logs import HumanLines, JsonLines
from service.policies import Networks
from service.settings import Settings
from service.tracing import Tracing
from tests.conftest import Driver
from tests.service.learners import ready_to_learn, work_off, worker


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_may_ask_for_the_head_alone(api: TestClient, path: str) -> None:
    answer = api.head(path)
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(api.get(path).content)))
    assert api.post(path).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_looking_changes_nothing(api: TestClient, driver: Driver, path: str) -> None:
    driver.run_episode()
    driver.get("/task")  # waits for the inference that the episode's end began
    redis = api.app.state.parts.store.redis

    def everything() -> dict[bytes, bytes | None]:
        return {key: redis.dump(key) for key in redis.scan_iter()}

    before, lives_ms = everything(), redis.pttl(f"skillet:{{{driver.session['session_id']}}}:session")
    for _ in range(3):
        assert api.get(path).status_code == 200
    assert everything() == before
    assert redis.pttl(f"skillet:{{{driver.session['session_id']}}}:session") <= lives_ms


def test_metrics_name_no_session_and_tell_tenths_of_a_millisecond(api: TestClient, driver: Driver) -> None:
    driver.run_episode(steps=7)
    text = api.get("/metrics").text
    assert driver.session["session_id"] not in text
    counts = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    assert counts['skillet_call_seconds_count{call="step"}'] == 7
    assert counts['skillet_call_seconds_count{call="act"}'] == 1
    buckets = [name for name in counts if name.startswith('skillet_call_seconds_bucket{call="step"')]
    assert sum(float(name.split('le="')[1].rstrip('"}').replace("+Inf", "inf")) < 0.001 for name in buckets) >= 5


def sample(api: TestClient, name: str) -> float:
    (line,) = [line for line in api.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_metrics_tell_what_waits_for_learners_and_what_they_did(api: TestClient, settings: Settings, tiny_networks: Networks) -> None:
    names = ["skillet_jobs_waiting", "skillet_jobs_in_work", "skillet_learners", "skillet_learner_updates_total"]
    assert [sample(api, name) for name in names] == [0, 0, 0, 0]
    ready_to_learn(api)
    assert [sample(api, name) for name in names] == [1, 0, 0, 0]
    assert sample(api, "skillet_jobs_oldest_wait_seconds") > 0
    learner = worker(settings, tiny_networks)
    assert [sample(api, name) for name in names[:3]] == [1, 0, 1]
    learner.turn(1)
    assert [sample(api, name) for name in names[:2]] == [0, 1]
    work_off(learner)
    assert [sample(api, name) for name in (*names[:2], names[3])] == [0, 0, 12]
    assert sample(api, "skillet_learner_update_seconds_total") > 0
    assert sample(api, "skillet_jobs_oldest_wait_seconds") == 0


def record(**fields: object) -> logging.LogRecord:
    found = logging.LogRecord("service.wire", logging.ERROR, "wire.py", 1, "%s failed", ("it",), None)
    vars(found).update(fields)
    return found


def test_json_logs_are_one_object_a_line_with_what_they_are_about() -> None:
    line = JsonLines().format(record(request_id="ab12", path="/a\nb"))
    assert "\n" not in line
    found = json.loads(line)
    assert {name: found[name] for name in ("level", "logger", "message", "request_id", "path")} == {
        "level": "error",
        "logger": "service.wire",
        "message": "it failed",
        "request_id": "ab12",
        "path": "/a\nb",
    }
    assert found["at"].endswith("Z")


def test_logs_for_people_keep_to_their_line_whatever_a_client_sends() -> None:
    line = HumanLines().format(record(request_id="ab12", path="/a\nERROR made up"))
    assert line.endswith("ERROR service.wire: it failed request_id=ab12 path=/a\\nERROR made up")


def test_requests_are_logged_where_it_is_asked_for_and_else_not(
    settings: Settings, tiny_networks: Networks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "skillet.access")
    for wanted, lines in ((False, 0), (True, 1)):
        caplog.clear()
        app = create_app(settings.model_copy(update={"access_log": wanted}), {"tiny": tiny_networks})
        with TestClient(app) as api:
            api.get("/livez", headers={"X-Request-Id": "mine"})
        assert len(caplog.records) == lines
    (line,) = caplog.records
    assert (line.method, line.path, line.status, line.request_id) == ("GET", "/livez", 200, "mine")  # type: ignore[attr-defined]
    assert line.duration_ms > 0  # type: ignore[attr-defined]


def test_a_span_tells_route_status_and_request_and_belongs_to_the_clients_trace(app: FastAPI) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "mine"}
    with TestClient(Tracing(app, provider), raise_server_exceptions=False) as api:
        assert api.get("/v1/sessions/none", headers=headers).status_code == 404
    (span,) = spans.get_finished_spans()
    assert span.name == "GET /v1/sessions/{session_id}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 404
    assert f"{span.context.trace_id:032x}" == trace


def test_without_the_option_no_request_is_traced_and_no_exporter_loaded() -> None:
    code = "import sys, service.api_worker; print([name for name in sys.modules if name.startswith('opentelemetry.exporter')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100).stdout.strip() == "[]"
