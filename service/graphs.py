"""ONNX graphs of a bundle, on one thread each, so that the same input gives the same bits on the same machine."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from training.contract.context import Floats
from training.contract.spec import GRAPH_INPUTS, GRAPH_OUTPUTS, ModelSpec, graph_shapes

Weights = dict[str, Floats]
_LOG_ERRORS_ONLY: Final = 3
_FLOAT: Final = 1  # onnx.TensorProto.FLOAT


def check_graph(file: str, data: bytes, spec: ModelSpec) -> None:
    """Raise ValueError for a graph with other inputs and outputs than the spec says, or with data outside of its file."""
    if b"location" in data:  # the key under which a tensor names the file that holds its data; it would be read from anywhere
        raise ValueError("it names external data; a bundle's graphs hold all of theirs")
    session = _open(data)
    for found, wanted in zip((session.get_inputs(), session.get_outputs()), graph_shapes(file, spec), strict=True):
        got = {each.name: (each.type, each.shape) for each in found}
        if got.keys() != wanted.keys() or not all(_fits(*got[name], shape) for name, shape in wanted.items()):
            raise ValueError(f"expected float tensors {wanted}, got {got}")


def _fits(kind: str, found: Sequence[Any], wanted: Sequence[int | None]) -> bool:
    return kind == "tensor(float)" and len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))


def _open(data: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Graph:
    """One ONNX graph, and the values that replace some of its initializers (none: its own)."""

    def __init__(self, file: str, data: bytes) -> None:
        self._session = _open(data)
        self._inputs, self._outputs = GRAPH_INPUTS[file], GRAPH_OUTPUTS[file]
        self._weights: Weights = {}
        self._single: _Single | None = None

    def replaceable(self) -> set[str]:
        """Names of the initializers that are inputs too."""
        return {each.name for each in self._session.get_overridable_initializers()}

    def run(self, *inputs: Floats) -> list[Floats]:
        """Outputs in the order of the contract for inputs in the order of the contract."""
        outputs: list[Floats] = self._session.run(self._outputs, {**dict(zip(self._inputs, inputs, strict=True)), **self._weights})
        return outputs

    def run_one(self, *inputs: Floats) -> list[Floats]:
        """As `run` for one example without a batch axis, in one thread: copies of the outputs, a quarter less time."""
        if self._single is None:
            outputs = self.run(*(values[None] for values in inputs))
            self._single = _Single(self._session, dict(zip(self._inputs, inputs, strict=True)), self._weights, self._outputs, outputs)
        return self._single.run(inputs)


class TunableGraph:
    """One graph for all that differ in their weights only: those are inputs, so that a set of weights costs its numbers and no session.

    Raises ValueError when the graph has no such weights: ONNX Runtime would ignore them, and the graph's own would act.
    """

    def __init__(self, file: str, data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shared = Graph(file, data + _as_inputs(shapes))
        self.shapes = dict(shapes)
        if missing := shapes.keys() - self._shared.replaceable():
            raise ValueError(f"{file} has no weights of the names {sorted(missing)}")

    def with_weights(self, weights: Weights) -> Graph:
        """The graph with these weights. Raises ValueError when they are not of its names and shapes."""
        found = {name: values.shape for name, values in weights.items()}
        if found != self.shapes:
            raise ValueError(f"expected weights {self.shapes}, got {found}")
        graph: Graph = Graph.__new__(Graph)
        graph.__dict__.update(self._shared.__dict__, _weights=weights, _single=None)
        return graph


class _Single:
    """Buffers for one example and its weights, bound to a session once."""

    def __init__(
        self, session: Any, inputs: Mapping[str, Floats], weights: Weights, names: Sequence[str], outputs: Sequence[Floats]
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = [np.zeros((1, len(values)), np.float32) for values in inputs.values()]
        self._outputs = [np.zeros(values.shape, np.float32) for values in outputs]
        self._weights = weights  # kept alive: their memory is what is bound
        for name, buffer in [*zip(inputs, self._inputs, strict=True), *weights.items()]:
            self._binding.bind_input(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        for name, buffer in zip(names, self._outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def run(self, inputs: Sequence[Floats]) -> list[Floats]:
        for buffer, values in zip(self._inputs, inputs, strict=True):
            buffer[0] = values
        self._session.run_with_iobinding(self._binding)
        return [buffer[0].copy() for buffer in self._outputs]


def _as_inputs(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What to append to a serialized ONNX model so that these initializers are inputs too.

    Messages of protocol buffers that are written one after the other are merged, and repeated fields (here ``ModelProto.graph.input``)
    joined. Numbers are those of the fields in onnx.proto3. An initializer that is an input is its default value (ONNX IR 4).
    """
    inputs = b""
    for name, shape in shapes.items():
        dims = b"".join(_message(1, _number(1, length)) for length in shape)  # TensorShapeProto.dim.dim_value
        tensor = _number(1, _FLOAT) + _message(2, dims)  # TypeProto.Tensor: elem_type, shape
        value = _message(1, name.encode()) + _message(2, _message(1, tensor))  # ValueInfoProto: name, type.tensor_type
        inputs += _message(11, value)  # GraphProto.input
    return _message(7, inputs)  # ModelProto.graph


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
