"""The Open Inference Protocol for a bundle's graphs: a published client against a running service, and requests that do not fit."""

import json
import subprocess

import numpy as np
import pytest

from tests.own_venv import python_with
from tests.service.running import RunningService

CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
state, skill = np.full((3, 4), 0.25, np.float32), np.full((3, 3), -0.5, np.float32)
inputs = [triton.InferInput(name, list(value.shape), "FP32") for name, value in (("state", state), ("skill", skill))]
for tensor, value in zip(inputs, (state, skill)):
    tensor.set_data_from_numpy(value, binary_data=False)
wanted = [triton.InferRequestedOutput("action", binary_data=False)]
answer = client.infer("tiny.skill_decoder", inputs, outputs=wanted, request_id="7")
try:
    client.infer("tiny.nothing", inputs, outputs=wanted)
    error = None
except InferenceServerException as refused:
    error = [refused.status(), refused.message()]
metadata = client.get_model_metadata("tiny.skill_decoder")
print(json.dumps({
    "live": client.is_server_live(), "ready": client.is_server_ready(), "server": client.get_server_metadata(),
    "model": metadata, "model_ready": client.is_model_ready("tiny.skill_decoder", metadata["versions"][0]),
    "other_ready": client.is_model_ready("tiny.nothing"),
    "action": answer.as_numpy("action").tolist(), "id": answer.get_response()["id"], "error": error,
}))
"""


def test_the_published_client_reads_metadata_and_infers(tiny_bundle, tiny_networks, tmp_path):
    python = python_with(tmp_path / "venv", "tritonclient[http]")
    with RunningService(tiny_bundle.path, tmp_path / "data", "--no-learner") as service:
        address = f"127.0.0.1:{service.pool.port}"
        done = subprocess.run([python, "-c", CLIENT, address], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["live"], found["ready"], found["model_ready"], found["other_ready"]) == (True, True, True, False)
    assert (found["server"]["name"], found["id"]) == ("skillet", "7")
    assert found["model"]["inputs"] == [
        {"name": "state", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "skill", "datatype": "FP32", "shape": [-1, 3]},
    ]
    wanted = tiny_networks.graphs["skill_decoder.onnx"].run(np.full((3, 4), 0.25, np.float32), np.full((3, 3), -0.5, np.float32))[0]
    np.testing.assert_array_equal(np.array(found["action"], np.float32), wanted)
    assert found["error"][0] == "404"
    assert "no model" in found["error"][1]


def tensor(name, values, **other):
    array = np.array(values, np.float32)
    return {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": values, **other}


def tensor_of(name, shape, data):
    return {"name": name, "shape": shape, "datatype": "FP32", "data": data}


STATE, SKILL = tensor("state", [[0.0, 0.1, 0.2, 0.3]]), tensor("skill", [[0.1, 0.2, 0.3]])


def infer(api, *inputs, model="tiny.skill_decoder", **more):
    return api.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **more})


def test_every_graph_runs_in_any_order_of_inputs_flat_or_nested(api, tiny_networks):
    nested = infer(api, SKILL, STATE).json()["outputs"]
    flat = infer(api, {**STATE, "data": [0.0, 0.1, 0.2, 0.3]}, {**SKILL, "data": [0.1, 0.2, 0.3]}).json()["outputs"]
    assert nested == flat
    assert (nested[0]["name"], nested[0]["shape"]) == ("action", [1, 2])
    policy = infer(api, STATE, tensor("task_embedding", [[0.5, -0.5]]), model="tiny.meta_policy").json()
    assert [each["name"] for each in policy["outputs"]] == ["skill_mean", "skill_std", "prior_mean", "prior_std"]
    width = tiny_networks.layout.width
    rows, mask = tensor("context", [[[0.1] * width] * 2]), tensor("mask", [[1.0, 1.0]])
    encoder = infer(api, rows, mask, model="tiny.task_encoder", outputs=[{"name": "std"}]).json()
    assert [(each["name"], each["shape"]) for each in encoder["outputs"]] == [("std", [1, 2])]


def test_a_version_is_the_beginning_of_the_digest(api, tiny_networks):
    version = api.get("/v2/models/tiny.skill_decoder").json()["versions"][0]
    assert tiny_networks.digest.startswith(version)
    assert api.get(f"/v2/models/tiny.skill_decoder/versions/{version}/ready").status_code == 200
    assert api.post(f"/v2/models/tiny.skill_decoder/versions/{version}/infer", json={"inputs": [STATE, SKILL]}).status_code == 200
    assert api.get("/v2/models/tiny.skill_decoder/versions/1/ready").status_code == 404


BAD = {
    "no inputs": [],
    "one of two": [STATE],
    "one twice": [STATE, STATE],
    "another name": [STATE, {**SKILL, "name": "x"}],
    "another datatype": [STATE, {**SKILL, "datatype": "FP64"}],
    "another width": [STATE, tensor("skill", [[0.1, 0.2]])],
    "another rank": [STATE, {**SKILL, "shape": [3]}],
    "a negative shape": [STATE, {**SKILL, "shape": [-1, 3]}],
    "too few numbers": [STATE, {**SKILL, "data": [0.1]}],
    "text": [STATE, {**SKILL, "data": ["1", "2", "3"]}],
    "truth values": [STATE, {**SKILL, "data": [True, True, True]}],
    "null": [STATE, {**SKILL, "data": [None, 1, 2]}],
    "nested too deep": [STATE, {**SKILL, "data": [[[0.1, 0.2, 0.3]]]}],
    "ragged": [tensor_of("state", [2, 4], [[0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2]]), tensor("skill", [[0.1, 0.2, 0.3]] * 2)],
    "nested otherwise": [tensor_of("state", [2, 4], [[0.0] * 2] * 4), tensor("skill", [[0.1, 0.2, 0.3]] * 2)],
    "lists beside numbers": [STATE, {**SKILL, "data": [0.1, [0.2], 0.3]}],
    "a number above float32": [STATE, {**SKILL, "data": [1e300, 0.0, 0.0]}],
    "an integer above every float": [STATE, {**SKILL, "data": [10**400, 0, 0]}],
    "two batches": [STATE, tensor("skill", [[0.1, 0.2, 0.3]] * 2)],
    "an empty batch": [{**STATE, "shape": [0, 4], "data": []}, {**SKILL, "shape": [0, 3], "data": []}],
    "an empty batch of a width that no memory holds": [{**STATE, "shape": [0, 2**62], "data": []}, {**SKILL, "shape": [0, 3], "data": []}],
    "no data": [STATE, {key: value for key, value in SKILL.items() if key != "data"}],
    "no tensors": [1, 2],
}


@pytest.mark.parametrize("name", BAD)
def test_requests_that_do_not_fit_get_400_and_an_error_that_says_why(api, name):
    refused = infer(api, *BAD[name])
    assert refused.status_code == 400, refused.text
    document = refused.json()
    assert (document["code"], document["status"]) == ("invalid_request", 400)
    assert document["error"] == document["detail"]


def test_an_output_that_is_asked_for_again_and_again_is_refused(api):
    refused = infer(api, STATE, SKILL, outputs=[{"name": "action"}] * 1000)
    assert (refused.status_code, refused.json()["expected"]) == (400, "each output once")


def test_inputs_for_which_a_graph_gives_numbers_that_are_not_finite_are_refused(api, tiny_networks, monkeypatch):
    found = [np.array([[1.0, 2.0, 3.0]], np.float32)] * 3
    monkeypatch.setattr(tiny_networks.graphs["meta_policy.onnx"], "run", lambda *_: [*found, np.array([[1.0, np.inf, np.nan]], np.float32)])
    inputs, model = (STATE, tensor("task_embedding", [[0.5, -0.5]])), "tiny.meta_policy"
    assert infer(api, *inputs, model=model, outputs=[{"name": "skill_std"}]).json()["outputs"][0]["data"] == [1.0, 2.0, 3.0]
    refused = infer(api, *inputs, model=model)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "prior_std: the graph gives numbers that are not finite" in refused.json()["error"]


def test_other_mistakes_get_the_protocols_form_too(api):
    unknown = api.get("/v2/models/tiny.nothing")
    assert (unknown.status_code, "error" in unknown.json()) == (404, True)
    assert infer(api, STATE, SKILL, outputs=[{"name": "x"}]).status_code == 400
    assert api.post("/v2/models/tiny.skill_decoder/infer", content=b"{").status_code == 400
    huge = api.post("/v2/models/tiny.skill_decoder/infer", content=b" " * (2**20 + 1))
    assert (huge.status_code, "error" in huge.json()) == (413, True)
    binary = api.post("/v2/models/tiny.skill_decoder/infer", content=b"{}", headers={"inference-header-content-length": "2"})
    assert binary.status_code == 400
