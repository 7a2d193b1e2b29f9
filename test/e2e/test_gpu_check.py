"""scripts/gpu-check, with the emulated device in a GPU's place: all of it but what a GPU alone can show."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(request):
    return pathlib.Path(request.config.getoption("--autosp-onnx")).resolve().parents[1]


@pytest.fixture
def gpu_check(built, tmp_path):
    """Calls the script on the build under test; AUTOSP_CUDA_MODULE is `module`."""

    def call(*arguments, module):
        environment = {**os.environ, "AUTOSP_CUDA_MODULE": str(module)}
        command = [sys.executable, ROOT / "scripts/gpu-check", tmp_path / "out", "--built", built, *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=600, env=environment, check=False
        )

    return call


def test_a_part_leaves_a_report_and_a_trace(gpu_check, built, tmp_path):
    result = gpu_check("--only", "trace", module=built / "lib/libautosp_emulated.so")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert all(row["outcome"] == "passed" for row in report["checks"].values())
    assert all(seconds > 0 for seconds in report["results"]["small steps"]["llama over 4"].values())
    assert {"time llama over 4 on cuda --fuse", "train llama over 4"} < report["checks"].keys()
    text = (tmp_path / "out/report.md").read_text()
    assert text.startswith("# an emulated device\n")
    assert "| llama over 4 |" in text
    assert json.loads((tmp_path / "out/trace.json").read_text())
    assert len(list((tmp_path / "out").iterdir())) <= 8  # what some machines give back


def test_what_fails_is_logged_and_keeps_nothing_from_running(gpu_check, built, tmp_path):
    (tmp_path / "out/trace.json").mkdir(parents=True)  # cannot be written
    result = gpu_check("--only", "trace", module=built / "lib/libautosp_emulated.so")
    assert result.returncode == 1
    checks = json.loads((tmp_path / "out/report.json").read_text())["checks"]
    assert [name for name, row in checks.items() if row["outcome"] != "passed"] == ["trace llama over 2"]
    assert "time bert over 4 on cuda" in checks
    assert "trace.json" in (tmp_path / "out/failures.log").read_text()


def test_what_there_is_no_time_for_is_told(gpu_check, built, tmp_path):
    result = gpu_check("--only", "trace", "--minutes", 0.15, module=built / "lib/libautosp_emulated.so")
    assert result.returncode in (0, 1)
    checks = json.loads((tmp_path / "out/report.json").read_text())["checks"]
    assert checks["time bert over 4 on cuda"]["outcome"] == "not run"


def test_without_a_device_it_says_why(gpu_check, tmp_path):
    result = gpu_check(module=tmp_path / "none.so")
    assert result.returncode == 2
    assert "error: there is no CUDA device: " in result.stderr
    assert (tmp_path / "out/report.md").exists()
