"""The OpenAPI document, fuzzed by Schemathesis against the application in chains of calls along its links."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

CHAINS, CHAIN_LENGTH, CASES = 15, 8, 6
OPTIONS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


@pytest.fixture
def counted(capsys: pytest.CaptureFixture[str]) -> Iterator[Counter[str]]:
    """Counts cases by operation; printed whether the test passes or not."""
    found: Counter[str] = Counter()
    yield found
    with capsys.disabled():
        sys.stdout.write(f"\nschemathesis: {found.total()} cases over {len(found)} operations, none answered with 5xx\n")


def call(case: schemathesis.Case, counted: Counter[str]) -> schemathesis.Response:
    if case.query and "wait_s" in case.query:
        case.query["wait_s"] = "0"  # there is no learner to wait for
    counted[case.operation.label] += 1
    return case.call()


def test_no_chain_of_calls_along_the_links_meets_a_server_error(app: FastAPI, counted: Counter[str]) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema.config.generation.update(modes=[GenerationMode.POSITIVE])  # most sessions open: what does not fit comes in the other test
    reached: Counter[str] = Counter()  # calls on a session that is there, which only the links lead to

    class Chains(schema.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            app.state.parts.store.redis.flushdb()  # what a chain meets must not depend on the one before: Hypothesis calls that flaky

        def call(self, case: schemathesis.Case, **options: object) -> schemathesis.Response:
            return call(case, counted)

        def validate_response(self, response: schemathesis.Response, case: schemathesis.Case, **options: object) -> None:
            case.validate_response(response, checks=[not_a_server_error])
            if "{session_id}" in case.operation.label and response.status_code < 300:
                reached[case.operation.label] += 1

    run_state_machine_as_test(Chains, settings=settings(max_examples=CHAINS, stateful_step_count=CHAIN_LENGTH, **OPTIONS))
    assert len(reached) > 2


def test_no_operation_meets_a_server_error_whatever_it_is_sent(app: FastAPI, counted: Counter[str], pytestconfig: pytest.Config) -> None:
    """Every operation of the document alone, with what fits its schema and what does not."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    cases = max(CASES, int(pytestconfig.getoption("--fuzz")) // 3000)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=cases, **OPTIONS)
            def send(case: schemathesis.Case) -> None:
                response = call(case, counted)
                assert response.status_code < 500, f"{case.operation.label}: {response.text}"
                case.validate_response(response, checks=[not_a_server_error])

            with suppress(Unsatisfiable):  # some operations take nothing that could be wrong
                send()
    assert set(counted) == {operation.label for operation in operations}
