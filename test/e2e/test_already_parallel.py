"""Graphs that other tools have made parallel are refused by the node that moves data between ranks."""

import onnx
import pytest
from onnx import helper
from training_graph import GRAPHS

LLAMA = GRAPHS / "llama_static.onnx"


def with_collective(path, domain, op):
    """The committed model with an operator behind its first product, as tensor parallelism has it."""
    model = onnx.load(LLAMA)
    at, product = next((k, node) for k, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    result = product.output[0]
    product.output[0] = "local"
    model.graph.node.insert(at + 1, helper.make_node(op, ["local"], [result], domain=domain, name="tensor_parallel"))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, path)


@pytest.mark.parametrize("command", ["shard", "check", "plan"])
@pytest.mark.parametrize(
    "domain, op",
    [
        ("com.microsoft", "NcclAllReduce"),
        ("com.microsoft", "AllReduce"),
        ("com.microsoft", "Recv"),
        ("com.microsoft", "DistributedMatMul"),
        ("_c10d_functional", "all_gather_into_tensor"),
        ("", "DistCollective"),
    ],
)
def test_the_collective_is_named(autosp_onnx, tmp_path, command, domain, op):
    path = tmp_path / "model.onnx"
    with_collective(path, domain, op)
    output = ["-o", tmp_path / "out"] if command == "shard" else []
    result = autosp_onnx(command, path, "--sp", 2, *output)
    said = result.stdout if command == "check" else result.stderr
    assert result.returncode == (1 if command == "check" else 2), said
    assert "parallel already" in said and "tensor_parallel" in said and op in said
    assert not (tmp_path / "out").exists()


def test_other_unknown_operators_are_not_taken_for_collectives(autosp_onnx, tmp_path):
    with_collective(tmp_path / "model.onnx", "my.domain", "Gelu2")
    result = autosp_onnx("shard", tmp_path / "model.onnx", "--sp", 2, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "not known" in result.stderr
