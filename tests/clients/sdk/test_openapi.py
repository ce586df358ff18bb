"""The SDK's models and the service's OpenAPI document name the same fields, and the SDK knows every error."""

from dataclasses import fields

import pytest

from clients.sdk import errors, models
from service import errors as service_errors
from service import session_errors as _session_errors  # noqa: F401  (for its subclasses)

PAIRS = {
    "Action": models.Action,
    "BundleName": models.BundleName,
    "BundleSummary": models.BundleSummary,
    "EndedEpisode": models.EndedEpisode,
    "EpisodeStarted": models.EpisodeStarted,
    "FinetuningStatus": models.FinetuningStatus,
    "ItemResult": models.ItemResult,
    "RewardsPosted": models.RewardsPosted,
    "PolicyEvent": models.PolicyEvent,
    "PolicyVersion": models.PolicyVersion,
    "PolicyVersions": models.PolicyVersions,
    "SessionView": models.SessionInfo,
    "Belief": models.Belief,
    "Particle": models.Particle,
    "TaskPosterior": models.TaskPosterior,
    "TransitionsPosted": models.TransitionsPosted,
}


@pytest.fixture
def schemas(api):
    return api.get("/openapi.json").json()["components"]["schemas"]


@pytest.mark.parametrize(("name", "model"), PAIRS.items())
def test_a_model_has_exactly_the_fields_of_its_schema(schemas, name, model):
    assert {field.name for field in fields(model)} == set(schemas[name]["properties"])


def test_a_transition_on_the_wire_is_the_sdks_with_its_numbers(schemas):
    assert set(schemas["Transition"]["properties"]) == {field.name for field in fields(models.Transition)} | {"episode", "step"}


def test_the_spec_of_a_session_has_every_field_of_the_sdks_model(api):
    specs = api.post("/v1/sessions", json={}).json()["specs"]
    assert {field.name for field in fields(models.ModelSpec)} <= set(specs)
    assert {field.name for field in fields(models.VectorSpec)} <= set(specs["observation"])


def all_subclasses(base):
    return {cls for child in base.__subclasses__() for cls in {child, *all_subclasses(child)}}


def test_every_error_of_the_service_has_its_own_in_the_sdk():
    for raised in all_subclasses(service_errors.ServiceError):
        known = errors.from_problem(raised.status, {"code": raised.code, "detail": "d"})
        assert type(known).default_code == raised.code or "code" not in vars(raised), raised
