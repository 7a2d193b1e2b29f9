"""What is run on the device: built here, or packed for another machine and unpacked there."""

from __future__ import annotations

import glob
import os
import pathlib
import re
import subprocess
import tarfile
from collections.abc import Sequence

from gpu_check.check import ROOT, Check

BUILD = ROOT / "build/release"
TARGETS = ["autosp-onnx", "test_conformance", "bench_device"]
MODELS = ["llama_bfloat16", "llama_8b_layers"]  # of bench/peers/llama_case.py; the second is as the first, and large
SYSTEM = r"/(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|stdc\+\+|gcc_s)\.so.*)$"  # every machine has its own


def build(check: Check, jobs: int) -> pathlib.Path | None:
    cmake = ["cmake", "--preset", "release", "-DAUTOSP_CUDA=ON"]
    if check.run("configure", cmake, 300) is None:
        return None
    targets = [*TARGETS, "autosp_cuda"]
    built = check.run("build", ["cmake", "--build", BUILD, "-j", jobs, "--target", *targets], 3600)
    return None if built is None else BUILD


def libraries_of(files: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """What these files link that other machines may lack."""
    found = {}
    for file in files:
        for line in subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout.splitlines():
            match = re.search(r"=> (/\S+)", line)
            if match and not re.search(SYSTEM, match[1]):
                found[pathlib.Path(match[1]).name] = pathlib.Path(match[1]).resolve()
    return found


def export(check: Check, python: pathlib.Path, folder: pathlib.Path) -> None:
    path = os.pathsep.join(map(str, (ROOT / "bench/peers", ROOT / "models")))
    for name in MODELS:
        command = [python, ROOT / "models/export_training_graph.py", "--module", f"llama_case:{name}", "--no-inputs"]
        command += ["--no-check"] if name == MODELS[1] else []
        check.run(f"export {name}", [*command, "-o", folder / f"{name}.onnx"], 3600, PYTHONPATH=path)


def pack(check: Check, file: pathlib.Path, python: pathlib.Path | None, jobs: int) -> int:
    built = build(check, jobs)
    if built is None:
        return 1
    module = built / "lib/libautosp_cuda.so"
    graphs = check.scratch / "graphs"
    graphs.mkdir()
    if python:
        export(check, python, graphs)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")  # what is cut short is no archive
    with tarfile.open(part, "w:xz", preset=4) as archive:
        for target in TARGETS:
            archive.add(built / "bin" / target, f"bin/{target}")
        archive.add(module, "lib/libautosp_cuda.so")
        for name, library in libraries_of([*(built / "bin" / t for t in TARGETS), module]).items():
            archive.add(library, f"system/{name}")
        archive.add((ROOT / ".deps/onnx-node-tests").resolve(), "source/.deps/onnx-node-tests")
        archive.add(graphs, "graphs")
    part.replace(file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 1 if check.failed() else 0


def unpack(check: Check, file: pathlib.Path) -> pathlib.Path | None:
    if file.is_dir():
        return file.resolve()
    built = check.scratch / "built"
    try:
        with tarfile.open(file) as archive:
            archive.extractall(built, filter="tar")
    except (OSError, EOFError, tarfile.TarError) as error:
        check.note(f"unpack {file}", f"failed ({error})", 0)
        return None
    (built / "source/models").symlink_to(ROOT / "models")
    check.environment["AUTOSP_SOURCE_DIR"] = str(built / "source")
    return built


def find_libraries(check: Check, built: pathlib.Path) -> None:
    """CUDA's libraries may lie in python3's packages alone."""
    places = [str(built / "system")] if (built / "system").is_dir() else []
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run(["python3", "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
    places += sorted(glob.glob(f"{packages}/nvidia/*/lib"))
    places += [path for path in [os.environ.get("LD_LIBRARY_PATH")] if path]
    check.environment["LD_LIBRARY_PATH"] = os.pathsep.join(places)
    check.environment.setdefault("CUDNN_FRONTEND_CUDART_LIB_NAME", "libcudart.so.13")
