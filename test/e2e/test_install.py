"""What `cmake --install` and `cpack` put on a machine works from there."""

import gzip
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from training_graph import GRAPHS

COMMANDS = [
    "batch",
    "check",
    "completion",
    "devices",
    "explain",
    "feed",
    "inspect",
    "plan",
    "replay",
    "report",
    "run",
    "shard",
    "train",
    "validate",
]


def run(*words, **options):
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def build(request):
    return pathlib.Path(request.config.getoption("--autosp-onnx")).resolve().parents[1]


@pytest.fixture(scope="module")
def prefix(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build, "--prefix", folder)
    return folder


def test_a_project_finds_the_package(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        "project(user LANGUAGES NONE)\n"
        "find_package(autosp 0.1 REQUIRED)\n"
        f"autosp_shard(llama MODEL {GRAPHS}/llama.onnx SP 2 DP 3 OPTIONS --dim seq=40)\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert len(json.loads((build / "llama" / "manifest.json").read_text())["ranks"]) == 6
    assert "no work to do" in run("cmake", "--build", build)


@pytest.mark.parametrize("generator", ["Ninja", "Unix Makefiles"])
def test_the_output_may_lie_deep(prefix, tmp_path, generator):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        "project(user LANGUAGES NONE)\n"
        "find_package(autosp 0.1 REQUIRED)\n"
        f"autosp_shard(llama MODEL {GRAPHS}/llama.onnx SP 2 OUTPUT shards/deep/llama OPTIONS --dim seq=40)\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-G", generator, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert (build / "shards" / "deep" / "llama" / "manifest.json").exists()


def listed_commands(autosp_onnx):
    text = autosp_onnx("--help").stdout.split("Subcommands:")[1].split("\n\n")[0]
    return sorted(line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " ")


def test_every_command_has_a_manual_page(autosp_onnx, prefix):
    assert listed_commands(autosp_onnx) == COMMANDS
    if shutil.which("help2man") is None:
        pytest.skip("help2man is not installed")
    pages = prefix / "share" / "man" / "man1"
    assert sorted(path.name for path in pages.iterdir()) == [
        *(f"autosp-onnx-{command}.1.gz" for command in COMMANDS),
        "autosp-onnx.1.gz",
    ]
    assert "recompute" in gzip.decompress((pages / "autosp-onnx-shard.1.gz").read_bytes()).decode()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["autosp-onnx", "ba"], {"batch"}),
        (["autosp-onnx", "shard", "--rec"], {"--recompute"}),
        (["autosp-onnx", "validate", "--t"], {"--tolerance", "--timeout", "--tf32"}),
    ],
)
def test_bash_completes_commands_and_options(prefix, words, expected):
    script = prefix / "share" / "bash-completion" / "completions" / "autosp-onnx"
    quoted = " ".join(f"'{word}'" for word in words)
    text = (
        f'source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _autosp_onnx; echo "${{COMPREPLY[@]}}"'
    )
    assert set(run("bash", "-c", text).split()) == expected


def test_zsh_is_told_every_command_and_option(prefix, autosp_onnx):
    script = prefix / "share" / "zsh" / "vendor-completions" / "_autosp-onnx"
    text = script.read_text()
    assert text.startswith("#compdef autosp-onnx\n")
    for command in ("shard", "run", "validate"):
        arguments = text.split(f"\n    {command})\n")[1].split(";;")[0]
        told = set(re.findall(r"'(--[a-z0-9-]+)=?\[", arguments))
        assert told == set(
            re.findall(r"^  (?:-\w,)?(--[a-z0-9-]+)", autosp_onnx(command, "--help").stdout, re.MULTILINE)
        )
    if zsh := shutil.which("zsh"):
        run(zsh, "-n", script)


def test_an_unknown_shell_is_refused(autosp_onnx):
    result = autosp_onnx("completion", "csh")
    assert result.returncode == 2
    assert "bash" in result.stderr


@pytest.mark.skipif(shutil.which("dpkg-shlibdeps") is None, reason="dpkg-dev is not installed")
def test_the_debian_package_names_what_it_needs(build, tmp_path):
    run("cpack", "-G", "DEB", "--config", build / "CPackConfig.cmake", "-B", tmp_path)
    package = next(tmp_path.glob("autosp-onnx_*.deb"))
    assert "libopenmpi3" in run("dpkg-deb", "--field", package, "Depends")
    assert "./usr/bin/autosp-onnx" in run("dpkg-deb", "--contents", package)
