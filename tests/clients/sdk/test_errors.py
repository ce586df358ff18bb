"""problem+json to typed errors."""

import re
from pathlib import Path

import pytest

from clients.sdk import errors
from tests.clients.servers import http_server, refuses, says

WIRE_CONTRACT = Path(__file__).parents[3] / "docs" / "rest-api.md"


def test_every_code_of_the_wire_contract_has_its_own_error():
    listed = re.findall(r"`([a-z_]+)` \((\d{3})\)", WIRE_CONTRACT.read_text())
    assert len(listed) >= 12
    for code, status in listed:
        error = errors.from_problem(int(status), {"code": code, "detail": "d"})
        assert type(error).default_code == code


def test_a_refusal_carries_all_that_the_service_said(connect):
    said = {"expected": "4 numbers", "received": "5 numbers", "action": "send what the spec lists", "request_id": "r-9"}
    with http_server(refuses(422, "invalid_observation", **said)) as (url, _), pytest.raises(errors.InvalidObservation) as caught:
        connect(url).bundles()
    error = caught.value
    assert (error.code, error.status, error.request_id) == ("invalid_observation", 422, "r-9")
    assert (error.expected, error.received, error.action) == ("4 numbers", "5 numbers", "send what the spec lists")
    assert all(part in str(error) for part in ("expected 4 numbers, got 5 numbers", "send what the spec lists", "r-9"))


@pytest.mark.parametrize(
    ("status", "kind"), [(404, errors.NotFound), (409, errors.Conflict), (410, errors.SessionGone), (500, errors.ServiceFailed)]
)
def test_a_code_from_a_newer_service_falls_back_to_its_status(status, kind):
    error = errors.from_problem(status, {"code": "not_invented_yet", "detail": "d"})
    assert type(error) is kind
    assert error.code == "not_invented_yet"


@pytest.mark.parametrize("answer", [says(200, b"<html>hello</html>", "text/html"), says(404, b"<html>nginx</html>", "text/html")])
def test_an_answer_that_is_not_the_services_is_told_apart(connect, answer):
    with http_server(answer) as (url, _), pytest.raises(errors.UnexpectedReply, match=r"text/html.*check that this address is Skillet's"):
        connect(url).bundles()
