"""The Open Inference Protocol, version 2 (KServe, Triton, MLServer), for the graphs of the served bundles, such as ``maze.skill_decoder``.

Read-only and without sessions: tensors in, tensors out, as JSON. A model's version is the beginning of its bundle's digest. Errors are
problem documents that have the protocol's own member ``error`` too, and its status 400 where the other calls have 422.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from msgspec import Struct

from service import schemas
from service.errors import InvalidRequest, ServiceError, UnknownBundle
from service.openapi import documented
from service.parts import parts_of
from service.policies import Networks
from service.wire import problem, read, reply
from training.contract.context import Floats
from training.contract.spec import (
    GRAPH_INPUTS,
    GRAPH_OUTPUTS,
    META_POLICY,
    REWARD_DECODER,
    SKILL_DECODER,
    SKILL_DYNAMICS,
    TASK_ENCODER,
)

_SUFFIX: Final = ".onnx"
_VERSION_DIGITS: Final = 12
_LARGEST_BATCH: Final = 4096


class Tensor(Struct, frozen=True):
    """A tensor of a request; what else it has is not read."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class Wanted(Struct, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class Infer(schemas.Request, frozen=True, forbid_unknown_fields=False):
    """A request of the protocol."""

    inputs: list[Tensor]
    outputs: list[Wanted] | None = None
    id: str | None = None


class _ProtocolRoute(APIRoute):
    """A route whose errors have the protocol's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                found = problem(request, error, parts_of(request).metrics)
                document = {**msgspec.json.decode(found.body), "error": error.detail}
                status = 400 if error.status == 422 else error.status
                return Response(msgspec.json.encode({**document, "status": status}), status, media_type="application/json")

        return handler


inference = APIRouter(prefix="/v2", tags=["open inference protocol"], default_response_class=Response, route_class=_ProtocolRoute)


@inference.get("/health/live")
async def live() -> Response:
    """The process runs."""
    return reply({"live": True})


@inference.get("/health/ready")
async def ready(request: Request) -> Response:
    """The bundles are loaded and Redis takes writes."""
    parts_of(request).store.check_writable()
    return reply({"ready": True})


@inference.get("")
async def about(request: Request) -> Response:
    """The service. It has none of the protocol's extensions."""
    return reply({"name": "skillet", "version": request.app.version, "extensions": []})


@inference.get("/models/{model}")
@inference.get("/models/{model}/versions/{version}")
async def read_model(request: Request, model: str, version: str | None = None) -> Response:
    """A graph's inputs and outputs; -1 in a shape is free."""
    networks, file = _find(request, model, version)
    shapes = _shapes(networks, file)
    tensors = [
        [{"name": name, "datatype": "FP32", "shape": shapes[name]} for name in names[file]] for names in (GRAPH_INPUTS, GRAPH_OUTPUTS)
    ]
    return reply(
        {"name": model, "versions": [_version(networks)], "platform": "onnxruntime_onnx", "inputs": tensors[0], "outputs": tensors[1]}
    )


@inference.get("/models/{model}/ready")
@inference.get("/models/{model}/versions/{version}/ready")
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """A graph that is served is loaded."""
    _find(request, model, version)
    return reply({"name": model, "ready": True})


@inference.post("/models/{model}/infer", openapi_extra=documented(dict, request=dict))
@inference.post("/models/{model}/versions/{version}/infer", openapi_extra=documented(dict, request=dict))
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Run a graph."""
    networks, file = _find(request, model, version)
    if "inference-header-content-length" in request.headers:
        raise _misfit("binary tensors are not read here", "JSON tensors", "the binary extension")
    asked = await read(request, Infer)
    arrays = _inputs(asked, networks, file)
    names = GRAPH_OUTPUTS[file]
    chosen = [each.name for each in asked.outputs or ()]
    if unknown := [name for name in chosen if name not in names]:
        raise _misfit(f"the model has no output {unknown[0]}"[:200], list(names), unknown[0][:64])
    if len(set(chosen)) != len(chosen):
        raise _misfit("an output is named twice", "each output once", f"{len(chosen)} names, {len(set(chosen))} different ones")

    def run() -> list[dict[str, Any]]:
        return _outputs(dict(zip(names, networks.graphs[file].run(*arrays), strict=True)), chosen or names)

    outputs = await asyncio.to_thread(run)
    number = {} if asked.id is None else {"id": asked.id}
    return reply({"model_name": model, "model_version": _version(networks), **number, "outputs": outputs})


def _find(request: Request, model: str, version: str | None) -> tuple[Networks, str]:
    served = parts_of(request).bundles
    models = {f"{name}.{file.removesuffix(_SUFFIX)}": (networks, file) for name, networks in served.items() for file in networks.graphs}
    if model not in models:
        raise UnknownBundle("this service has no model of that name", expected=sorted(models), received=model[:64])
    if version is not None and version != _version(models[model][0]):
        raise UnknownBundle("the model has no such version", expected=_version(models[model][0]), received=version[:64])
    return models[model]


def _version(networks: Networks) -> str:
    return networks.digest[:_VERSION_DIGITS]


def _shapes(networks: Networks, file: str) -> dict[str, list[int]]:
    spec = networks.spec
    state, skill, embedding = [-1, spec.state_dim], [-1, spec.skill_dim], [-1, spec.task_embedding_dim]
    return {
        SKILL_DECODER: {"state": state, "skill": skill, "action": [-1, spec.action_dim]},
        META_POLICY: {"state": state, "task_embedding": embedding} | dict.fromkeys(GRAPH_OUTPUTS[META_POLICY], skill),
        TASK_ENCODER: {"context": [-1, -1, networks.layout.width], "mask": [-1, -1], "mean": embedding, "std": embedding},
        REWARD_DECODER: {"state": state, "task_embedding": embedding, "probability": [-1]},
        SKILL_DYNAMICS: {"state": state, "noise": skill, "drawn_skill": skill, "next_state": state},
    }[file]


def _inputs(asked: Infer, networks: Networks, file: str) -> list[Floats]:
    """The graph's inputs in its order, all of one batch. Raises InvalidRequest."""
    names, shapes = GRAPH_INPUTS[file], _shapes(networks, file)
    given = {tensor.name: tensor for tensor in asked.inputs}
    if sorted(tensor.name for tensor in asked.inputs) != sorted(names):
        raise _misfit("the model's inputs are needed, each once", list(names), sorted(given)[:10])
    arrays = [_array(given[name], shapes[name]) for name in names]
    free = {array.shape[: 2 if file == TASK_ENCODER else 1] for array in arrays}
    if len(free) != 1:
        raise _misfit("the inputs are not of one batch", "the same first dimensions", sorted(map(list, free)))
    batch = next(iter(free))
    if not 1 <= batch[0] <= _LARGEST_BATCH or (file == TASK_ENCODER and batch[1] > networks.spec.max_context):
        raise _misfit("the batch cannot be run", f"1 to {_LARGEST_BATCH} examples of up to {networks.spec.max_context} rows", list(batch))
    return arrays


def _array(tensor: Tensor, shape: list[int]) -> Floats:
    name = tensor.name
    if tensor.datatype != "FP32":
        raise _misfit(f"{name}: wrong datatype", "FP32", tensor.datatype[:20])
    fits = len(tensor.shape) == len(shape) and all(
        given >= 0 and wanted in (-1, given) for given, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise _misfit(f"{name}: wrong shape", shape, tensor.shape[:8])
    if 0 in tensor.shape:
        raise _misfit(f"{name}: the tensor is empty", "at least one example", tensor.shape)
    if tensor.data is msgspec.UNSET:
        raise _misfit(f"{name}: no data", "JSON tensors with 'data'", sorted(tensor.parameters)[:5])
    values = _flat(tensor.data, name, tensor.shape)
    if len(values) != math.prod(tensor.shape):
        raise _misfit(f"{name}: the data do not fit the shape", f"{math.prod(tensor.shape)} numbers", len(values))
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32).reshape(tensor.shape)
    except OverflowError:  # an integer that no float holds
        array = np.full(1, np.inf, np.float32)
    if not np.isfinite(array).all():
        raise _misfit(f"{name}: a number is not finite in float32", "finite numbers", "infinity")
    return array


def _flat(data: list[Any], name: str, shape: list[int]) -> list[float]:
    """The numbers of a list that is flat, or nested as ``shape`` is."""
    if not any(isinstance(each, list) for each in data):
        return _numbers(data, name)
    if len(data) != shape[0] or len(shape) == 1 or not all(isinstance(each, list) for each in data):
        raise _misfit(f"{name}: the data are not nested as the shape is", f"{shape[0]} lists", f"{len(data)} entries")
    rows = [_flat(each, name, shape[1:]) for each in data]
    wanted = math.prod(shape[1:])
    if ragged := [len(row) for row in rows if len(row) != wanted]:
        raise _misfit(f"{name}: the data are not nested as the shape is", f"{wanted} numbers in each of {shape[0]} lists", ragged[0])
    return [value for row in rows for value in row]


def _numbers(data: list[Any], name: str) -> list[float]:
    for each in data:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise _misfit(f"{name}: the data are no numbers", "numbers, flat or nested as the shape", type(each).__name__)
    return data


def _outputs(found: dict[str, Floats], names: Sequence[str]) -> list[dict[str, Any]]:
    """Outputs as tensors. Raises InvalidRequest where they are not finite: JSON has no word for that."""
    if broken := [name for name in names if not np.isfinite(found[name]).all()]:
        raise _misfit(
            f"{broken[0]}: the graph gives numbers that are not finite", "inputs of the size that it was trained on", "larger ones"
        )
    return [{"name": name, "datatype": "FP32", "shape": found[name].shape, "data": found[name].ravel().tolist()} for name in names]


def _misfit(detail: str, expected: Any, received: Any) -> InvalidRequest:
    return InvalidRequest(f"{detail}: expected {expected}, got {received}"[:400], expected=expected, received=received)
