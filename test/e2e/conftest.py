"""Options and fixtures of the end-to-end tests."""

import pathlib
import subprocess

import pytest


def pytest_addoption(parser):
    parser.addoption("--autosp-onnx", required=True, help="path of the binary under test")


@pytest.fixture(scope="session")
def autosp_onnx(request):
    """Calls the binary: autosp_onnx("shard", ...) returns the completed process, its text captured."""
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()

    def call(*arguments, timeout=120):
        return subprocess.run(
            [binary, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    return call
