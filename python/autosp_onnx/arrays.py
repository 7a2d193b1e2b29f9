"""NumPy archives as autosp-onnx reads and writes them."""

import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from autosp_onnx.errors import AutospError

Array = np.ndarray


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of an .npz file, by name; bfloat16 as 2-byte void. Raises AutospError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as failure:
        raise AutospError(
            f"'{os.fspath(path)}' cannot be read: {failure}",
            note="it is to be a NumPy archive of plain arrays",
            help="write it with numpy.savez",
        ) from failure


def write_npz(path: pathlib.Path, arrays: Mapping[str, Array]) -> None:
    """Any name may be an array's, unlike with numpy.savez. What is no regular file is written through.

    Raises AutospError when it cannot be written.
    """
    try:
        _replace(path, arrays)
    except OSError as failure:
        raise AutospError(
            f"'{path}' cannot be written: {failure.strerror}",
            note="the system refused it",
            help="check that you may write there, and that the disk has room",
        ) from failure


def _replace(path: pathlib.Path, arrays: Mapping[str, Array]) -> None:
    if path.exists() and not path.is_file():
        _write(path, arrays)
        return
    target = path.resolve()  # a link stays one
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    try:
        _write(part, arrays)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write(path: pathlib.Path, arrays: Mapping[str, Array]) -> None:
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)


def as_fed(array: Array, wanted: str) -> Array:
    """float32 rounded to the nearest bfloat16, where that is wanted, as `autosp-onnx run` does."""
    if wanted != "bfloat16" or array.dtype != np.float32:
        return array
    bits = np.ascontiguousarray(array).view(np.uint32)
    nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    quiet = (bits >> 16) | 0x40  # rounding could make a number of what is none
    result = np.where(np.isnan(array).reshape(bits.shape), quiet, nearest).astype(np.uint16)
    return result.view("V2").reshape(array.shape)


def type_name(array: Array) -> str:
    """The element type as the manifest names it."""
    return "bfloat16" if array.dtype.kind == "V" and array.dtype.itemsize == 2 else str(array.dtype)
