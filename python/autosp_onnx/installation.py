"""Where the C++ parts are: the binary autosp-onnx and the library of collectives.

They lie in `bin` and `lib` of one folder: of this package when it was installed; of the folder that
AUTOSP_ONNX_HOME names; or of build/release in a source tree.
"""

import importlib.util
import os
import pathlib

from autosp_onnx.errors import AutospError

_PACKAGE = pathlib.Path(__file__).resolve().parent


def _homes() -> list[pathlib.Path]:
    named = os.environ.get("AUTOSP_ONNX_HOME")
    if named:
        return [pathlib.Path(named)]
    return [_PACKAGE, _PACKAGE.parents[1] / "build" / "release"]


def _find(part: pathlib.Path) -> pathlib.Path:
    for home in _homes():
        if (home / part).is_file():
            return home / part
    raise AutospError(
        f"there is no {part}",
        note=f"looked in {', '.join(map(str, _homes()))}",
        help="install the package with pip, or build with scripts/build and set AUTOSP_ONNX_HOME to build/release",
    )


def binary() -> pathlib.Path:
    """The program autosp-onnx. Raises AutospError where there is none."""
    return _find(pathlib.Path("bin") / "autosp-onnx")


def collectives_library() -> pathlib.Path:
    """What onnxruntime.SessionOptions.register_custom_ops_library takes. Raises AutospError where there is none."""
    return _find(pathlib.Path("lib") / "libautosp_ort_collectives.so")


def require_onnxruntime() -> None:
    """Raises AutospError where ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise AutospError(
            "the Python package onnxruntime is not installed",
            note="ranks were to run in ONNX Runtime",
            help="pip install onnxruntime",
        )
