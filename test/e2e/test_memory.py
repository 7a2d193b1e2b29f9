"""What is kept, recomputed and tiled changes memory, never results, and is known before the run."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from training_graph import GRAPHS, TrainingGraph

LLAMA = GRAPHS / "llama.onnx"
FEED = GRAPHS / "llama.npz"
DIM = ("--dim", "seq=40")


def report(autosp_onnx, command, *options):
    result = autosp_onnx(command, *options, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def plan(autosp_onnx, *options, memory="16MiB"):
    """With little memory, so that the search for the longest sequence is short."""
    return report(autosp_onnx, "plan", LLAMA, *DIM, "--memory", memory, *options)


def test_windows_that_are_whole_on_a_rank_are_planned_as_they_run(autosp_onnx, tmp_path):
    """Read from the file, a Slice or Pad of nothing is an Identity: no copy, another arrangement of the arena."""
    model = GRAPHS / "matrix" / "llama_h6_kv3.onnx"
    graph = TrainingGraph(model)
    options = ["--dim", "batch=1", "--dim", "seq=1200", "--sp", 2]
    predicted = report(autosp_onnx, "plan", model, *options, "--memory", "2MiB")
    report(autosp_onnx, "shard", model, *options, "-o", tmp_path / "out")
    np.savez(tmp_path / "feed.npz", **graph.inputs({"batch": 1, "seq": 1200}))
    run = report(autosp_onnx, "run", tmp_path / "out", "--feed", tmp_path / "feed.npz", "--threads-per-rank", 1)
    assert max(rank["planned_peak_bytes"] for rank in run["ranks"]) == predicted["planned_peak_bytes"]


@pytest.mark.parametrize("policy", ["none", "mincut", "sac", "full", "budget=", "auto"])
@pytest.mark.parametrize("tile", ["off", "auto", "3"])
def test_results_stay_and_the_peak_is_the_predicted_one(autosp_onnx, tmp_path, policy, tile):
    if policy == "budget=":
        # Between the least and the most that the policies take.
        peaks = [
            plan(autosp_onnx, "--sp", 2, "--recompute", p, "--tile", tile, memory="4MiB")["planned_peak_bytes"]
            for p in ("none", "full")
        ]
        policy += str(sum(peaks) // 2)
    options = ("--sp", 2, "--recompute", policy, "--tile", tile)
    predicted = plan(autosp_onnx, *options, memory="4MiB")
    shard = report(autosp_onnx, "shard", LLAMA, *DIM, *options, "-o", tmp_path / "out")
    assert shard["recompute"]["policy"] == policy
    assert (shard["recompute"]["operators"] > 0) == (policy not in ("none", "auto"))
    assert autosp_onnx("validate", LLAMA, tmp_path / "out", "--feed", FEED).returncode == 0
    ranks = report(autosp_onnx, "run", tmp_path / "out", "--feed", FEED, "--threads-per-rank", 1)["ranks"]
    assert max(rank["planned_peak_bytes"] for rank in ranks) == predicted["planned_peak_bytes"]
    for rank in ranks:
        # Pages are used as a whole, and so small a model leaves some scratch memory of attention untouched.
        assert abs(rank["measured_peak_bytes"] - rank["planned_peak_bytes"]) <= 0.05 * rank["planned_peak_bytes"] + 4096
    if policy.startswith("budget="):
        assert predicted["planned_peak_bytes"] <= int(policy.removeprefix("budget="))


def test_buckets_add_up_and_the_longest_sequence_fits(autosp_onnx):
    memory = 16 << 20
    prediction = plan(autosp_onnx, "--sp", 2, "--device", "cpu")
    assert prediction["peak_bytes"] == sum(prediction["memory_bytes"].values())
    assert prediction["memory_bytes"]["kept activations"] > 0
    longest = prediction["longest_sequence"]
    assert longest > 40

    def peak(sequence):
        options = ("--dim", f"seq={sequence}", "--sp", 2, "--device", "cpu", "--memory", "16MiB")
        return report(autosp_onnx, "plan", LLAMA, *options)["peak_bytes"]

    assert longest % 64 == 0 and peak(longest) <= memory
    assert all(peak(longest + 64 * more) > memory for more in range(1, 9))


@pytest.mark.parametrize("options", [("--tile", 100), ("--recompute", "auto"), ("--sp", 3), ("--recompute", "budget=9MiB")])
def test_the_longest_sequence_is_the_longest(autosp_onnx, options):
    longest = plan(autosp_onnx, *options)["longest_sequence"]

    def fits(sequence):
        there = ("plan", LLAMA, "--dim", f"seq={sequence}", "--memory", "16MiB", *options, "--json")
        result = autosp_onnx(*there)
        return result.returncode == 0 and json.loads(result.stdout)["fits"]

    assert fits(longest) and not any(fits(longest + 64 * more) for more in (1, 2, 3, 4))


def test_the_longest_sequence_is_one_that_the_model_takes(autosp_onnx, tmp_path):
    """Rows of tokens, three to a row: the sequence is a multiple of 3."""
    model = onnx.load(LLAMA)
    ids = helper.make_tensor("rows of three", onnx.TensorProto.INT64, [3], [3, -1, 3])
    model.graph.initializer.append(ids)
    model.graph.node.append(helper.make_node("Reshape", ["input_ids", ids.name], ["rows"], name="rows"))
    model.graph.output.append(helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, [3, None, 3]))
    onnx.save(model, tmp_path / "rows.onnx")
    options = ("--dim", "seq=30", "--sp", 2, "--memory", "16MiB")
    longest = report(autosp_onnx, "plan", tmp_path / "rows.onnx", *options)["longest_sequence"]
    assert longest > 192 and longest % 192 == 0


@pytest.mark.parametrize("graph", ["bert_ort_training", "gpt2_ort_training_model"])
def test_every_rank_stays_within_plan_and_budget(autosp_onnx, tmp_path, graph):
    model, feed = GRAPHS / f"{graph}.onnx", GRAPHS / f"{graph.split('_')[0]}.npz"
    predicted = report(autosp_onnx, "plan", model, "--sp", 4)
    shard = ("shard", model, "--sp", 4, "-o", tmp_path / "out")
    manifest = report(autosp_onnx, *shard)
    arrays = dict(np.load(feed).items())
    for entry in manifest["inputs"]:  # accumulated gradients start as zeros
        arrays.setdefault(entry["name"], np.zeros(entry["shape"], entry["dtype"]))
    np.savez(tmp_path / "feed.npz", **arrays)

    def peaks():
        run = report(autosp_onnx, "run", tmp_path / "out", "--feed", tmp_path / "feed.npz", "--threads-per-rank", 1)
        return [rank["planned_peak_bytes"] for rank in run["ranks"]]

    kept = peaks()
    assert max(kept) == kept[predicted["peak_rank"]] == predicted["planned_peak_bytes"] > kept[0]
    report(autosp_onnx, *shard, "--recompute", f"budget={max(kept)}")
    assert max(peaks()) <= max(kept)


@pytest.mark.parametrize("graph", ["llama", "gpt2"])
def test_budgets_that_a_policy_meets_are_met(autosp_onnx, graph):
    options = (GRAPHS / f"{graph}.onnx", *DIM, "--sp", 4, "--sweep", "--tile", "auto")
    peaks = [row["planned_peak_bytes"] for row in report(autosp_onnx, "plan", *options)]
    assert len(peaks) == 4
    least = autosp_onnx("plan", *options, "--recompute", "budget=1KiB").stderr
    least = int(least.split(" bytes)")[0].split("(")[-1])
    assert least <= min(peaks)
    for budget in (least, *peaks):
        (row,) = report(autosp_onnx, "plan", *options, "--recompute", f"budget={budget}")
        assert row["planned_peak_bytes"] <= budget


def test_a_sweep_tabulates_every_policy(autosp_onnx):
    rows = plan(autosp_onnx, "--sweep")
    assert {row["recompute"] for row in rows} == {"none", "mincut", "sac", "full"}
    assert {row["sp"] for row in rows} >= {1, 2, 4}
    assert {row["tile"] for row in rows} == {"off", "auto"}
    for row in rows:
        assert row["seconds"] > 0 and row["forward_flops"] > 0
        assert (row["bytes_sent"] > 0) == (row["sp"] > 1)


def test_a_sweep_keeps_to_what_is_given(autosp_onnx):
    rows = plan(autosp_onnx, "--sweep", "--sp", 3, "--recompute", "sac", "--tile", 5)
    assert [(row["sp"], row["recompute"], row["tile"]) for row in rows] == [(3, "sac", "5")]


def test_devices_come_from_files(autosp_onnx, tmp_path):
    device = tmp_path / "slow.json"
    device.write_text('{"like": "h100", "product_wide": 1e9, "memory": 1000}')
    slow = report(autosp_onnx, "plan", LLAMA, *DIM, "--device", device)
    fast = plan(autosp_onnx, "--device", "h100")
    assert slow["compute_seconds"] > fast["compute_seconds"]
    assert not slow["fits"] and slow["longest_sequence"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (("--recompute", "ful"), "did you mean 'full'"),
        (("--recompute", "budget=1KiB"), "it takes"),
        (("--recompute", "budget=lots"), "takes a number of bytes"),
        (("--recompute", "lots"), "leave it out for mincut"),
        (("--tile", "0"), "--tile takes a whole number"),
        (("--tile", "banana"), "or auto, which chooses"),
        (("--memory", "0"), "takes a number of bytes"),
        (("--memory", ""), "takes a number of bytes"),
        (("--device", "abacus"), "neither a known device nor a file"),
    ],
)
def test_mistakes_are_named(autosp_onnx, options, message):
    result = autosp_onnx("plan", LLAMA, *DIM, "--sp", 2, *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr


@pytest.mark.parametrize(
    "text, message",
    [('{"bandwith": 1e9}', "did you mean 'bandwidth'?"), ("{", "it is not JSON"), ('{"link": 0}', "'link' is not a number")],
)
def test_mistakes_in_device_files_are_named(autosp_onnx, tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    result = autosp_onnx("plan", LLAMA, *DIM, "--device", tmp_path / "d.json")
    assert result.returncode == 2
    assert message in result.stderr
    assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr


def test_memory_takes_units(autosp_onnx):
    limits = {
        report(autosp_onnx, "plan", GRAPHS / "llama_static.onnx", "--memory", text)["memory_limit_bytes"]
        for text in ("24GiB", "24G", "24 gib", "25769803776")
    }
    assert limits == {24 << 30}
