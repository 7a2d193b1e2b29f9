"""Rank graphs in stock ONNX Runtime: under MPI by autosp-onnx-ort, and in threads of this process."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import python_package
import numpy as np
import onnx
import onnxruntime
import pytest

from training_graph import GRAPHS, TrainingGraph, assert_same_step

LLAMA = TrainingGraph(GRAPHS / "llama.onnx")

# A session per process, by nothing but what docs/other_runtimes.md shows; rank LATE comes too late.
OWN_SCRIPT = """
import os, sys, time
import numpy, onnxruntime
from autosp_onnx import collectives_library, feed

rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
options.add_session_config_entry("autosp.timeout", "2")
options.register_custom_ops_library(str(collectives_library()))
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/rank_{rank}.onnx", options)
if rank == int(sys.argv[3]):
    time.sleep(60)
with numpy.load(sys.argv[2]) as archive:
    own = feed(sys.argv[1], dict(archive))[rank]
print(f"rank {rank} has loss {session.run(['loss'], own)[0]:.6f}", flush=True)
"""

IN_ANY_ORDER = OWN_SCRIPT.replace("PRIORITY_BASED", "DEFAULT")


@pytest.fixture(scope="module", autouse=True)
def home(request):
    python_package.use(request)


def ort(*arguments, timeout=120):
    """Calls autosp-onnx-ort."""
    command = [sys.executable, "-m", "autosp_onnx.onnxruntime_command", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def shard(autosp_onnx, graph, folder, *options):
    bindings = [part for name, size in graph.symbolic_axes.items() for part in ("--dim", f"{name}={size}")]
    result = autosp_onnx("shard", graph.path, "-o", folder, *bindings, *options)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def four_ranks(autosp_onnx, tmp_path_factory):
    return shard(autosp_onnx, LLAMA, tmp_path_factory.mktemp("llama") / "out", "--sp", 4)


def assert_file_holds_step(path, expected):
    """A file lists its arrays by name, a step in the model's order."""
    with np.load(path) as archive:
        assert set(archive.files) == set(expected)
        assert_same_step({name: archive[name] for name in expected}, expected)


# Beyond the whole models: ranks that differ by more than numbers (rank 0 alone keeps a term of a sum), query positions
# that are split, reduce-scatters and groups of some ranks.
CASES = {
    "gpt2": ("gpt2.onnx", "--sp", 4),
    "llama with grouped queries": ("llama.onnx", "--sp", 4),
    "bert with padding": ("bert.onnx", "--sp", 4),
    "nano with tied weights": ("nano.onnx", "--sp", 4),
    "ranks of different nodes": ("adversarial/shared_constant.onnx", "--sp", 4),
    "three axes": ("matrix/llama_h6_kv2.onnx", "--sp-mesh", "u=2,r=2"),
    "a ring": ("matrix/llama_h6_kv2.onnx", "--sp-mesh", "r=4", "--ring", "on"),
    "two batches": ("matrix/llama_h8_kv2.onnx", "--sp", 2, "--dp", 2),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_under_mpi_equal_the_whole_model(autosp_onnx, tmp_path, case):
    file, *options = CASES[case]
    graph = TrainingGraph(GRAPHS / file)
    out = shard(autosp_onnx, graph, tmp_path / "out", *options)
    run = ort(out, "--np", 4, "--feed", graph.feed, "--output", tmp_path / "o.npz", "--json")
    assert run.returncode == 0, run.stderr
    expected = graph.step(graph.committed_inputs)
    assert_file_holds_step(tmp_path / "o.npz", expected)
    report = json.loads(run.stdout)
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1, 2, 3]
    assert {rank["loss"] for rank in report["ranks"]} == {report["ranks"][0]["loss"]}
    assert report["runtime"] == f"ONNX Runtime {onnxruntime.__version__}"


def test_dropout_drops_what_the_executor_drops(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "dropout" / "gpt2.onnx")
    out = shard(autosp_onnx, graph, tmp_path / "out", "--sp", 3)
    with_step = tmp_path / "feed.npz"
    np.savez(with_step, **graph.committed_inputs, autosp_step=np.array(6))
    for step, feed in ((6, with_step), (0, graph.feed)):  # 0 where none is given
        expected = autosp_onnx("run", out, "--feed", graph.feed, "--step", step, "--output", tmp_path / "expected.npz")
        assert expected.returncode == 0, expected.stderr
        run = ort(out, "--np", 3, "--feed", feed, "--output", tmp_path / "o.npz")
        assert run.returncode == 0, run.stderr
        with np.load(tmp_path / "expected.npz") as archive:
            assert_file_holds_step(tmp_path / "o.npz", dict(archive))


def test_functions_are_told_apart_by_name(autosp_onnx, tmp_path):
    """Runtimes that ignore overloads would take one for another."""
    dropout = TrainingGraph(GRAPHS / "dropout" / "gpt2.onnx")
    for policy in ("full", "mincut"):
        out = shard(autosp_onnx, dropout, tmp_path / policy, "--sp", 2, "--recompute", policy)
        model = onnx.load(out / "rank_0.onnx")
        names = [function.name for function in model.functions]
        assert len(names) == len(set(names)) and "Attention_1" in names
        assert not any(function.overload for function in model.functions)
        # A body that fits every shape: our kernel stands for it by its name.
        barriers = {node.op_type for node in model.graph.node if "~barrier" in node.output[0]}
        assert "RecomputeBarrier" in barriers and barriers <= {"RecomputeBarrier", "RecomputeBarrier_1"}


def test_cases_use_every_collective(autosp_onnx, tmp_path):
    kinds = set()
    for number, (file, *options) in enumerate(CASES.values()):
        out = shard(autosp_onnx, TrainingGraph(GRAPHS / file), tmp_path / str(number), *options)
        kinds |= {entry["kind"] for entry in json.loads((out / "manifest.json").read_text())["collectives"]}
    assert kinds == {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}


def test_ranks_in_threads_equal_the_whole_model(four_ranks):
    from autosp_onnx.manifest import read_manifest
    from autosp_onnx.onnxruntime_ranks import run_in_threads

    expected = LLAMA.step(LLAMA.committed_inputs)
    ranks = run_in_threads(read_manifest(four_ranks), LLAMA.committed_inputs)
    assert len(ranks) == 4
    for outputs in ranks:
        assert_same_step(outputs, expected)


# --- How it ends when something is wrong.


def assert_refused(result, message):
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == ["error", "note", "help"]


def test_usage_errors(four_ranks, tmp_path):
    feed = LLAMA.feed
    assert_refused(ort(four_ranks, "--np", 3, "--feed", feed), "is sharded over 4 ranks, but 3 are to run")
    assert_refused(ort(four_ranks, "--feed", GRAPHS / "bert.npz"), "float32[112, 96] is missing")
    assert_refused(ort(four_ranks, "--feed", GRAPHS / "llama.onnx"), "cannot be read")
    assert_refused(ort(tmp_path, "--feed", feed), "holds no sharded model")
    for output, reason in {
        tmp_path: "it is a folder",
        tmp_path / "none" / "o.npz": "there is no folder",
        four_ranks / "rank_0.onnx": "it is a file of the sharded model",
    }.items():
        assert_refused(ort(four_ranks, "--feed", feed, "--output", output), reason)
    assert ort(four_ranks).returncode == 2  # no --feed


def test_what_cannot_be_written_is_told(four_ranks):
    feed = ("--feed", LLAMA.feed)
    assert_refused(ort(four_ranks, *feed, "--output", "/dev/full"), "'/dev/full' cannot be written: No space left")
    command = [sys.executable, "-m", "autosp_onnx.onnxruntime_command", four_ranks, *feed]
    for where in (">/dev/full", ">&-"):
        for option in ((), ("--json",)):
            words = ["sh", "-c", f'"$@" {where}', "sh", *command, *option]
            result = subprocess.run([*map(str, words)], stderr=subprocess.PIPE, text=True, timeout=120)
            assert result.returncode == 2
            assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["error", "note", "help"]
            assert "the report could not be printed" in result.stderr


def test_it_says_when_there_is_no_onnxruntime(four_ranks):
    script = "import sys; sys.modules['onnxruntime'] = None; from autosp_onnx import onnxruntime_command as command"
    script += "; sys.exit(command.main(sys.argv[1:]))"
    words = [sys.executable, "-c", script, four_ranks, "--feed", LLAMA.feed]
    assert_refused(subprocess.run(words, capture_output=True, text=True, timeout=60), "onnxruntime is not installed")


def test_a_rank_that_fails_ends_all_and_is_named(four_ranks, autosp_onnx, tmp_path):
    out = shard(autosp_onnx, LLAMA, tmp_path / "out", "--sp", 4)
    (out / "rank_2.onnx").write_bytes((out / "rank_1.onnx").read_bytes())
    result = ort(out, "--feed", LLAMA.feed, "--output", tmp_path / "o.npz")
    assert_refused(result, "rank_2.onnx' is of rank 1, not of rank 2")
    assert not (tmp_path / "o.npz").exists()


def mpirun(ranks, *arguments, script=OWN_SCRIPT):
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), sys.executable, "-c", script]
    command += map(str, arguments)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL
    )


def said_losses(result):
    """What the ranks print, by rank; mpirun may join lines of several."""
    return sorted(re.findall(r"rank \d has loss \d+\.\d{6}", result.stdout))


def test_a_script_of_ones_own(four_ranks):
    result = mpirun(4, four_ranks, LLAMA.feed, -1)
    assert result.returncode == 0, result.stderr
    loss = float(LLAMA.step(LLAMA.committed_inputs)["loss"])
    assert said_losses(result) == [f"rank {rank} has loss {loss:.6f}" for rank in range(4)]


def test_a_rank_that_does_not_come_is_named_in_time(four_ranks):
    began = time.monotonic()
    result = mpirun(4, four_ranks, LLAMA.feed, 2)
    assert result.returncode != 0 and time.monotonic() - began < 40
    assert "has waited 2 s in AllToAll" in result.stderr and "for rank 2" in result.stderr
    assert result.stdout == ""


def test_too_few_ranks_are_told(four_ranks):
    result = mpirun(3, four_ranks, LLAMA.feed, -1)
    assert result.returncode != 0
    assert "the group has ranks outside the 3 that run" in result.stderr


def test_graphs_of_another_plan_are_noticed(autosp_onnx, four_ranks, tmp_path):
    out = shard(autosp_onnx, LLAMA, tmp_path / "out", "--sp", 4, "--recompute", "full")
    (out / "rank_2.onnx").write_bytes((four_ranks / "rank_2.onnx").read_bytes())
    assert_refused(ort(out, "--feed", LLAMA.feed), "rank_2.onnx' is by another plan")


def without_tokens(path):
    """Takes the order of collectives out of a rank graph."""
    model = onnx.load(path)
    for node in model.graph.node:
        if any(attribute.name == "group" for attribute in node.attribute):
            del node.input[1:], node.output[1:]
    onnx.save(model, path)


def test_ranks_that_call_different_collectives_are_told(autosp_onnx, tmp_path):
    """Ranks of different nodes, no tokens, and a session that orders nodes as it likes: an error, no hang."""
    out = shard(
        autosp_onnx, TrainingGraph(GRAPHS / "adversarial" / "shared_constant.onnx"), tmp_path / "out", "--sp", 4
    )
    for rank in range(4):
        without_tokens(out / f"rank_{rank}.onnx")
    result = mpirun(4, out, GRAPHS / "adversarial" / "shared_constant.npz", -1, script=IN_ANY_ORDER)
    assert result.returncode != 0
    assert re.search("different collectives: rank . calls AllReduce .*, but rank . calls AllReduce ", result.stderr)


def test_tokens_keep_the_order_in_any_session(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "adversarial" / "shared_constant.onnx")
    out = shard(autosp_onnx, graph, tmp_path / "out", "--sp", 4)
    loss = float(graph.step(graph.committed_inputs)["loss"])
    for script in (IN_ANY_ORDER, IN_ANY_ORDER.replace("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")):
        result = mpirun(4, out, graph.feed, -1, script=script)
        assert result.returncode == 0, result.stderr
        assert said_losses(result) == [f"rank {rank} has loss {loss:.6f}" for rank in range(4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "smoke"}, "autosp.transport is 'smoke'"),
        ({"timeout": "soon"}, "autosp.timeout is 'soon'"),
        ({"transport": "threads", "world": "w", "ranks": 2}, "autosp.rank is missing"),
        ({"transport": "threads", "world": "w", "ranks": 2, "rank": 2}, "autosp.rank is '2'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    from autosp_onnx import AutospError
    from autosp_onnx.onnxruntime_ranks import session_options

    with pytest.raises(AutospError, match=re.escape(message)) as refusal:
        session_options(settings=settings)
    assert refusal.value.note
    assert refusal.value.help


def test_a_rank_that_does_not_come_is_named_in_threads(four_ranks):
    from autosp_onnx import AutospError
    from autosp_onnx.manifest import read_manifest
    from autosp_onnx.onnxruntime_ranks import RankSession, session_options

    manifest = read_manifest(four_ranks)
    settings = {"transport": "threads", "world": "alone", "ranks": 4, "rank": 1}
    session = RankSession(manifest, 1, session_options(timeout=1, settings=settings))
    with pytest.raises(AutospError, match=r"rank 1 has waited 1 s in AllToAll .* for ranks 0, 2, 3"):
        session.run(manifest.of_rank(LLAMA.committed_inputs, 1))


def test_interrupted_it_leaves_no_process(four_ranks, tmp_path):
    """The ranks wait for one that was stopped; the command is then asked to end."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "autosp_onnx.onnxruntime_command", four_ranks, "--feed", LLAMA.feed]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = wait_for_workers(tmp_path)
    os.kill(workers[-1], signal.SIGSTOP)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGINT
    assert not workers_of(tmp_path)
    assert not list(tmp_path.glob("autosp-onnx-*"))


def workers_of(folder):
    """Processes whose command line names the folder and that are ranks."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == sys.executable.encode() and any(word.startswith(f"{folder}/".encode()) for word in words):
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for_workers(folder):
    for _ in range(300):
        if len(workers := workers_of(folder)) == 4:
            return workers
        time.sleep(0.1)
    raise AssertionError("no four ranks started")
