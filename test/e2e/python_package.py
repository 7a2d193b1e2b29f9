"""Makes the Python package of this source tree use the binary under test."""

import os
import pathlib
import sys

PYTHON = pathlib.Path(__file__).resolve().parents[2] / "python"


def use(request):
    """For child processes too."""
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    os.environ["AUTOSP_ONNX_HOME"] = str(binary.parents[1])
    os.environ["PYTHONPATH"] = str(PYTHON)
    sys.path.insert(0, str(PYTHON))
