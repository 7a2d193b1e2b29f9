"""OUT/manifest.json: what a sharded model consists of (src/onnx/manifest.proto is its schema)."""

import dataclasses
import difflib
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from autosp_onnx.arrays import Array, type_name, write_npz
from autosp_onnx.errors import AutospError

FORMAT = 1
STAMP = "autosp.feed"
"""The array of a feed file that says which rank and batch it is of, as the bytes of a JSON text."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of the unsharded model.

    Attributes:
        name: of the graph input, the same on every rank.
        dtype: "float32", "int64", ...
        shape: of the whole input.
        is_parameter: a weight; else data.
        slices: for each rank, the part of the whole that it takes; empty: every rank takes all of it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_parameter: bool
    slices: tuple[tuple[slice, ...], ...]

    def of_rank(self, whole: Array, rank: int) -> Array:
        """The part of `whole`, of shape `self.shape`, that a rank is fed; contiguous."""
        return np.ascontiguousarray(whole[self.slices[rank]]) if self.slices else whole


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `autosp-onnx shard` wrote into `folder`."""

    folder: pathlib.Path
    fields: dict[str, Any]  # the whole file
    inputs: tuple[Input, ...]

    @property
    def ranks(self) -> int:
        return len(self.fields["ranks"])

    @property
    def signature(self) -> str:
        """Of model and plan: what every rank's graph carries as its property autosp.plan."""
        return _fnv1a(f"{self.fields['model']['fingerprint']} {self.fields['plan_hash']}")

    @property
    def loss(self) -> str | None:
        """The name of the loss."""
        return next((output["name"] for output in self.fields["outputs"] if output["role"] == "loss"), None)

    @property
    def gradients(self) -> dict[str, str]:
        """{parameter: the output that is its gradient}."""
        return {o["parameter"]: o["name"] for o in self.fields["outputs"] if o["role"] == "gradient"}

    def graph(self, rank: int) -> pathlib.Path:
        """The file of a rank's graph."""
        return self.folder / str(self.fields["ranks"][rank]["file"])

    @property
    def step_input(self) -> str | None:
        """The input that takes the number of the step, which decides random numbers; None: nothing is random."""
        return (self.fields.get("random") or {}).get("step_input") or None

    def select(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
        """The whole inputs among `arrays`; step 0 where none is given.

        Raises AutospError when one is missing or has another type or shape.
        """
        if self.step_input is not None:
            arrays = {self.step_input: np.int64(0).reshape(()), **arrays}
        problems = []
        for expected in self.inputs:
            wanted = f"{expected.dtype}{list(expected.shape)}"
            array = arrays.get(expected.name)
            if array is None:
                near = difflib.get_close_matches(expected.name, arrays, n=1, cutoff=0.8)
                problems.append(f"'{expected.name}' {wanted} is missing" + (f" (it has '{near[0]}')" if near else ""))
            elif (type_name(array), array.shape) != (expected.dtype, expected.shape):
                problems.append(f"'{expected.name}' is {type_name(array)}{list(array.shape)}, not {wanted}")
        if problems:
            raise AutospError(
                f"{where} does not fit the model: {problems[0]}",
                note="; ".join(problems[1:4]) or "the manifest lists what the model takes",
                help="give every graph input, whole (ranks take their slices), with its shape and type",
            )
        return {expected.name: arrays[expected.name] for expected in self.inputs}

    def of_rank(self, arrays: Mapping[str, Array], rank: int) -> dict[str, Array]:
        """What a rank is fed of whole inputs, which `select` has checked."""
        return {part.name: part.of_rank(arrays[part.name], rank) for part in self.inputs}


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Raises AutospError when the folder holds no manifest, or one of another format."""
    path = pathlib.Path(folder) / "manifest.json"
    try:
        fields = json.loads(path.read_text())
        if fields["format"] != FORMAT:
            raise ValueError(f"it has format {fields['format']}, not {FORMAT}")
        inputs = tuple(_input(entry) for entry in fields["inputs"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise AutospError(
            f"'{os.fspath(folder)}' holds no sharded model: {failure}",
            note=f"looked for {path}",
            help="give the folder that 'autosp-onnx shard' wrote; shard the model again if it is damaged",
        ) from failure
    return Manifest(pathlib.Path(folder), fields, inputs)


def feed(folder: str | os.PathLike[str], inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Cuts a global batch into what each rank is fed.

    Args:
        folder: what `autosp-onnx shard` wrote.
        inputs: every graph input, whole: data and parameters, with the shapes and types of the manifest.

    Returns:
        For each rank, its slice of every input. Parts that are not cut are the same array for all ranks.

    Raises:
        AutospError: an input is missing or has another shape or type; the folder holds no sharded model.
    """
    manifest = read_manifest(folder)
    whole = manifest.select(inputs, "the batch")
    return [manifest.of_rank(whole, rank) for rank in range(manifest.ranks)]


def write_feeds(
    folder: str | os.PathLike[str], inputs: Mapping[str, Array], output: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Writes what `feed` gives to `output`/rank_<k>.npz, as `autosp-onnx feed` does.

    Each file says which rank and batch it is of, so that `autosp-onnx run --feed-rank` refuses ranks that are fed from
    different batches.

    Args:
        folder: what `autosp-onnx shard` wrote.
        inputs: every graph input, whole.
        output: the folder to write, made if need be.

    Returns:
        The files, by rank.

    Raises:
        AutospError: as `feed`.
    """
    manifest = read_manifest(folder)
    whole = manifest.select(inputs, "the batch")
    directory = pathlib.Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    batch = {
        part.name: f"{zlib.crc32(np.ascontiguousarray(whole[part.name]).tobytes()):08x}"
        for part in manifest.inputs
        if not part.is_parameter and part.name != manifest.step_input
    }
    files = []
    for rank in range(manifest.ranks):
        stamp = json.dumps({"rank": rank, "plan": manifest.signature, "batch": batch})
        files.append(directory / f"rank_{rank}.npz")
        write_npz(files[-1], {**manifest.of_rank(whole, rank), STAMP: np.frombuffer(stamp.encode(), np.uint8)})
    return files


def _fnv1a(text: str) -> str:
    """The 64-bit hash, 16 hexadecimal digits."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def _input(entry: dict[str, Any]) -> Input:
    return Input(
        name=entry["name"],
        dtype=entry["dtype"],
        shape=tuple(entry["shape"]),
        is_parameter=entry["role"] == "parameter",
        slices=tuple(
            tuple(slice(begin, begin + extent) for begin, extent in zip(part["begin"], part["extent"], strict=True))
            for part in entry["slices"]
        ),
    )
