"""Graphs that do not fit the manifest, or name data outside of the bundle, are not served."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from service.policies import Networks
from tests.tiny_bundle import copied
from training.contract.bundle import Bundle, write_bundle
from training.contract.errors import BundleCorrupt
from training.contract.spec import META_POLICY, SKILL_DECODER


def with_graph(bundle: Bundle, path: Path, file: str, graph: onnx.ModelProto) -> Bundle:
    """A copy with another graph, whose digest is right: made by somebody who means it."""
    manifest = bundle.manifest
    files = {name: bundle.read(name) for name in manifest.files} | {file: graph.SerializeToString()}
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if name not in ("format_version", "files")}
    return write_bundle(path, files, **fields)


def graph_of(bundle: Bundle, file: str) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read(file))


def test_external_data_is_refused_and_not_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = graph_of(tiny_bundle, META_POLICY)
    tensor = next(each for each in graph.graph.initializer if each.data_type == TensorProto.FLOAT)
    secret = tmp_path / "secret"
    secret.write_bytes(tensor.raw_data)
    set_external_data(tensor, str(secret))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleCorrupt, match="external data"):
        Networks(with_graph(tiny_bundle, tmp_path / "bad", META_POLICY, graph))


def test_external_data_hidden_in_a_nodes_constant_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = graph_of(tiny_bundle, SKILL_DECODER)
    node = graph.graph.node.add(op_type="Constant", output=["unused"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(TensorProto(data_type=TensorProto.FLOAT, dims=[1], raw_data=b"1234"))
    set_external_data(attribute.t, "/etc/hostname")
    attribute.t.ClearField("raw_data")
    with pytest.raises(BundleCorrupt, match="external data"):
        Networks(with_graph(tiny_bundle, tmp_path / "bad", SKILL_DECODER, graph))


def renamed(graph: onnx.ModelProto) -> None:
    for each in graph.graph.input:
        if each.name == "skill":
            each.name = "other"
    for node in graph.graph.node:
        node.input[:] = ["other" if name == "skill" else name for name in node.input]


def one_more_input(graph: onnx.ModelProto) -> None:
    graph.graph.input.append(onnx.helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))


def another_width(graph: onnx.ModelProto) -> None:
    for each in graph.graph.input:
        if each.name == "skill":
            each.type.tensor_type.shape.dim[1].dim_value = 7


def another_type(graph: onnx.ModelProto) -> None:
    (output,) = graph.graph.output
    graph.graph.node.append(onnx.helper.make_node("Cast", [output.name], ["whole"], to=TensorProto.INT64))
    output.CopyFrom(onnx.helper.make_tensor_value_info("action", TensorProto.INT64, [None, 2]))
    for node in graph.graph.node:
        node.output[:] = [{"action": "before", "whole": "action"}.get(name, name) for name in node.output]
        node.input[:] = ["before" if name == "action" else name for name in node.input]


@pytest.mark.parametrize("change", [renamed, one_more_input, another_width, another_type])
def test_inputs_and_outputs_must_be_those_of_the_manifest(tiny_bundle: Bundle, tmp_path: Path, change) -> None:
    graph = graph_of(tiny_bundle, SKILL_DECODER)
    change(graph)
    with pytest.raises(BundleCorrupt, match=r"skill_decoder\.onnx"):
        Networks(with_graph(tiny_bundle, tmp_path / "bad", SKILL_DECODER, graph))


def test_a_spec_that_the_graphs_do_not_have_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    spec = tiny_bundle.manifest.spec.model_copy(update={"skill_dim": 4})
    with pytest.raises(BundleCorrupt, match="expected float tensors"):
        Networks(copied(tiny_bundle, tmp_path / "bad", spec=spec))


def test_a_graph_in_the_place_of_another_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleCorrupt, match="expected float tensors"):
        Networks(with_graph(tiny_bundle, tmp_path / "bad", SKILL_DECODER, graph_of(tiny_bundle, META_POLICY)))
