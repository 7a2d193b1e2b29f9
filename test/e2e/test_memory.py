"""What is kept, recomputed and tiled changes memory, never results, and is known before the run."""

import json

import pytest

from training_graph import GRAPHS

LLAMA = GRAPHS / "llama.onnx"
FEED = GRAPHS / "llama.npz"
DIM = ("--dim", "seq=40")


def report(autosp_onnx, command, *options):
    result = autosp_onnx(command, *options, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def plan(autosp_onnx, *options):
    """With little memory, so that the search for the longest sequence is short."""
    return report(autosp_onnx, "plan", LLAMA, *DIM, "--memory", "16MiB", *options)


@pytest.mark.parametrize("policy", ["none", "mincut", "sac", "full", "budget=", "auto"])
@pytest.mark.parametrize("tile", ["off", "auto", "3"])
def test_results_stay_and_the_peak_is_the_predicted_one(autosp_onnx, tmp_path, policy, tile):
    if policy == "budget=":
        # Between the least and the most that the policies take.
        peaks = [
            plan(autosp_onnx, "--sp", 2, "--recompute", p, "--tile", tile)["planned_peak_bytes"]
            for p in ("none", "full")
        ]
        policy += str(sum(peaks) // 2)
    options = ("--sp", 2, "--recompute", policy, "--tile", tile)
    predicted = plan(autosp_onnx, *options)
    shard = report(autosp_onnx, "shard", LLAMA, *DIM, *options, "-o", tmp_path / "out")
    assert shard["recompute"]["policy"] == policy
    assert (shard["recompute"]["operators"] > 0) == (policy not in ("none", "auto"))
    assert autosp_onnx("validate", LLAMA, tmp_path / "out", "--feed", FEED).returncode == 0
    ranks = report(autosp_onnx, "run", tmp_path / "out", "--feed", FEED, "--threads-per-rank", 1)["ranks"]
    assert ranks[0]["planned_peak_bytes"] == predicted["planned_peak_bytes"]
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

    assert peak(longest) <= memory < peak(longest * 11 // 10 + 64)


def test_a_sweep_tabulates_every_policy(autosp_onnx):
    rows = plan(autosp_onnx, "--sweep")
    assert {row["recompute"] for row in rows} == {"none", "mincut", "sac", "full"}
    assert {row["sp"] for row in rows} >= {1, 2, 4}
    for row in rows:
        assert row["seconds"] > 0 and row["forward_flops"] > 0
        assert (row["bytes_sent"] > 0) == (row["sp"] > 1)


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
        (("--tile", "0"), "--tile takes a whole number"),
        (("--device", "abacus"), "neither a known device nor a file"),
    ],
)
def test_mistakes_are_named(autosp_onnx, options, message):
    result = autosp_onnx("plan", LLAMA, *DIM, "--sp", 2, *options)
    assert result.returncode == 2
    assert message in result.stderr
