"""Many models at once: what has changed is converted again, and nothing else."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from training_graph import GRAPHS

EXAMPLE = GRAPHS.parents[1] / "examples" / "pipeline"
STATIC = ["bert_static", "gpt2_static", "nano_static"]


@pytest.fixture
def models(tmp_path):
    """Copies, to be changed: tmp_path/models/<name>.onnx."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in STATIC:
        shutil.copy(GRAPHS / f"{name}.onnx", folder)
    return folder


@pytest.fixture
def batch(autosp_onnx, tmp_path):
    """Converts into tmp_path/out; returns the exit code and the status of every job by name."""

    def call(*arguments, code=0):
        result = autosp_onnx("batch", *arguments, "-o", tmp_path / "out", "--report", tmp_path / "report.json")
        assert result.returncode == code, result.stderr
        report = json.loads((tmp_path / "report.json").read_text())
        assert sum(report["summary"].values()) == len(report["jobs"])
        return {job["name"]: job["status"] for job in report["jobs"]}

    return call


def all_of(status, names=STATIC):
    return {f"{name}-sp2": status for name in names}


def test_the_second_run_does_nothing(autosp_onnx, batch, models, tmp_path):
    pattern = models / "*.onnx"
    assert batch(pattern, "--sp", 2) == all_of("converted")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.onnx")}
    assert len(written) == 2 * len(STATIC)
    assert batch(pattern, "--sp", 2) == all_of("up-to-date")
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.onnx")}
    result = autosp_onnx("validate", models / "nano_static.onnx", tmp_path / "out" / "nano_static-sp2")
    assert result.returncode == 0, result.stderr


def test_two_stars_are_any_number_of_folders(autosp_onnx, batch, models, tmp_path):
    deep = models / "a" / "b [1]"
    for folder in (deep, models / ".hidden"):
        folder.mkdir(parents=True)
    (models / "bert_static.onnx").rename(deep / "bert_static.onnx")
    shutil.copy(models / "gpt2_static.onnx", models / ".hidden")
    (models / "a" / "circle").symlink_to(models)
    assert autosp_onnx("shard", models / "nano_static.onnx", "--sp", 2, "-o", models / "result").returncode == 0
    found = batch(models / "**" / "*.onnx", "--sp", 2)
    assert len(found) == 3 and set(found.values()) == {"converted"}
    assert sum("bert_static" in name for name in found) == 1
    assert len(batch(tmp_path / "**" / "b*" / "**" / "*.onnx", "--sp", 2)) == 1
    result = autosp_onnx("batch", models / "**" / "*.ort", "--sp", 2, "-o", tmp_path / "none")
    assert result.returncode == 2 and "no file matches" in result.stderr


def test_what_has_changed_is_converted_again(batch, models, tmp_path):
    pattern = models / "*.onnx"
    batch(pattern, "--sp", 2)
    os.utime(models / "bert_static.onnx")  # touched, and the same
    assert batch(pattern, "--sp", 2) == all_of("up-to-date")
    shutil.copy(models / "nano_static.onnx", models / "gpt2_static.onnx")
    assert batch(pattern, "--sp", 2) == {**all_of("up-to-date"), "gpt2_static-sp2": "converted"}
    shutil.rmtree(tmp_path / "out" / "bert_static-sp2")
    assert batch(pattern, "--sp", 2) == {**all_of("up-to-date"), "bert_static-sp2": "converted"}
    assert batch(pattern, "--sp", 2, "--recompute", "sac") == all_of("converted")
    assert batch(pattern, "--sp", 2, "--sp", 4, "--recompute", "sac") == {
        **all_of("up-to-date"),
        **{f"{name}-sp4": "converted" for name in STATIC},
    }


def test_another_programs_results_are_made_again(batch, models, tmp_path):
    pattern = models / "nano*.onnx"
    batch(pattern, "--sp", 2)
    record = tmp_path / "out" / ".autosp-batch" / "nano_static-sp2.json"
    text = json.loads(record.read_text())
    record.write_text(json.dumps({**text, "tool": "another"}))
    assert batch(pattern, "--sp", 2) == all_of("converted", ["nano_static"])


def test_failures_are_reported_and_the_rest_is_done(batch, models, tmp_path):
    (models / "broken.onnx").write_bytes(b"no model")
    (models / "nano_static.onnx").unlink()
    shutil.copy(GRAPHS / "nano.onnx", models)  # its sequence has no value
    assert batch(models / "*.onnx", "--sp", 2, code=1) == {
        **all_of("converted", ["bert_static", "gpt2_static"]),
        **all_of("failed", ["broken", "nano"]),
    }
    jobs = {job["name"]: job for job in json.loads((tmp_path / "report.json").read_text())["jobs"]}
    assert jobs["nano-sp2"]["exit_code"] == 2
    assert "symbolic dimension 'seq'" in jobs["nano-sp2"]["error"]
    assert "help:" in jobs["broken-sp2"]["error"]
    assert not (tmp_path / "out" / "nano-sp2").exists()


def test_job_files(batch, models, tmp_path):
    shutil.copy(GRAPHS / "llama.onnx", models)
    jobs = {
        "defaults": {"sp": 2},
        "jobs": [
            {"model": "models/*_static.onnx"},
            {"model": "models/llama.onnx", "dim": {"seq": 40}, "sp": [2, 4], "name": "llama"},
        ],
    }
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    names = [*STATIC, "llama"]
    expected = {**all_of("converted", names), "llama-sp4": "converted"}
    assert batch(tmp_path / "jobs.json") == expected
    (tmp_path / "jobs.yaml").write_text(
        "defaults: {sp: 2}\n"
        "jobs:\n"
        "  - model: models/*_static.onnx\n"
        "  - {model: models/llama.onnx, dim: [seq=40], sp: [2, 4], name: llama}\n"
    )
    assert batch(tmp_path / "jobs.yaml") == {name: "up-to-date" for name in expected}
    assert set(batch(tmp_path / "jobs.yaml", "--sp", 3)) == {*(f"{name}-sp3" for name in STATIC), "llama"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{models}/none*.onnx"], "no file matches"),
        (["{models}/*.onnx", "--sp", "two"], "--sp"),
        (["{models}/*.onnx", "--dialect", "latin"], "--dialect"),
        (["{models}/*.onnx", "--spp", "2"], "did you mean '--sp'"),
        (["{models}/nano_static.onnx", "{models}/nano_static.onnx"], "two jobs would write"),
        (["{models}/jobs.yaml"], "'spp' is no option"),
        (["{models}/none.yaml"], "cannot read the job file"),
    ],
)
def test_usage_errors_begin_nothing(autosp_onnx, models, tmp_path, arguments, message):
    (models / "jobs.yaml").write_text("- {model: nano_static.onnx, spp: 2}\n")
    words = [word.format(models=models) for word in arguments]
    result = autosp_onnx("batch", *words, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def start(request, *arguments):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    return subprocess.Popen([binary, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(folder):
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_batch_goes_on(request, batch, models, tmp_path, number):
    for k in range(20):
        shutil.copy(GRAPHS / "bert_static.onnx", models / f"copy{k}.onnx")
    out = tmp_path / "out"
    process = start(request, "batch", models / "*.onnx", "--sp", 2, "-j", 1, "-o", out)
    while len(results(out)) < 3:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
    if number != signal.SIGKILL:
        assert "interrupted" in printed
    time.sleep(0.5)  # a killed batch's last process ends, too
    there = results(out)
    assert len(there) < 23
    assert not [path for path in out.iterdir() if path.name != ".autosp-batch" and path.name not in there]
    statuses = batch(models / "*.onnx", "--sp", 2)
    assert list(statuses.values()).count("converted") <= 23 - len(there) + 1
    assert list(statuses.values()).count("up-to-date") >= 2
    assert len(results(out)) == 23


def test_two_batches_do_not_share_a_folder(request, autosp_onnx, models, tmp_path):
    for k in range(20):
        shutil.copy(GRAPHS / "bert_static.onnx", models / f"copy{k}.onnx")
    out = tmp_path / "out"
    first = start(request, "batch", models / "*.onnx", "--sp", 2, "-j", 1, "-o", out)
    while not results(out):
        time.sleep(0.01)
    second = autosp_onnx("batch", models / "*.onnx", "--sp", 2, "-o", out)
    assert second.returncode == 2
    assert "another batch" in second.stderr
    first.communicate(timeout=120)
    assert first.returncode == 0


def run(*words, **options):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, **options)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_makefile_converts_ten_models_once(request, tmp_path):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    shutil.copytree(GRAPHS, tmp_path / "graphs", ignore=lambda folder, names: [n for n in names if "." not in n])
    words = ["make", "-C", EXAMPLE, f"AUTOSP_ONNX={binary}", f"GRAPHS={tmp_path}/graphs", f"OUT={tmp_path}/out", "-j2"]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert len(results(tmp_path / "out")) == 10
    assert first.stdout.count(" shard ") == 10
    assert " shard " not in run(*words).stdout
    os.utime(tmp_path / "graphs" / "nano.onnx")
    assert run(*words).stdout.count(" shard ") == 1


def test_the_cmake_project_converts_ten_models_once(request, tmp_path):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    configured = run("cmake", "-S", EXAMPLE, "-B", tmp_path, "-G", "Ninja", f"-DAUTOSP_ONNX_PROGRAM={binary}")
    assert configured.returncode == 0, configured.stderr
    first = run("cmake", "--build", tmp_path)
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("Splitting") == 10
    assert len(results(tmp_path)) == 10
    assert "no work to do" in run("cmake", "--build", tmp_path).stdout
