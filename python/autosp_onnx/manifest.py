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

from autosp_onnx.arrays import Array, as_fed, type_name, write_npz
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
        return np.ascontiguousarray(whole[self.slices[rank]]) if self.slices else np.asarray(whole)


@dataclasses.dataclass(frozen=True)
class OpenLength:
    """Of graphs that take sequences of several lengths.

    Attributes:
        dim: the symbolic dimension that is open.
        planned: the length, in tokens, whose numbers the manifest states.
        multiple, minimum, maximum: which lengths are allowed, in tokens; maximum 0: none is known.
        inputs: by name, the input whose shape and slices are what those of an input gain with `multiple` tokens.
    """

    dim: str
    planned: int
    multiple: int
    minimum: int
    maximum: int
    inputs: dict[str, Input]

    def __str__(self) -> str:
        end = f" to {self.maximum}" if self.maximum else " on"
        return f"multiples of {self.multiple} from {self.minimum}{end}"

    def check(self, length: int) -> None:
        """Raises AutospError for a length that the graphs do not take."""
        too_long = self.maximum != 0 and length > self.maximum
        if length % self.multiple == 0 and length >= self.minimum and not too_long:
            return
        raise AutospError(
            f"{self.dim}={length} is no length that these graphs take: {self}",
            note="they were sharded for several lengths at once",
            help=f"give inputs of another length, or shard the model again with --dim {self.dim}={length}",
        )

    def of(self, inputs: tuple[Input, ...], arrays: Mapping[str, Array]) -> int:
        """The length of whole inputs. Raises AutospError when it does not follow from them."""
        for planned in inputs:
            array = _get(arrays, planned.name)
            if planned.name not in self.inputs or array is None or array.ndim != len(planned.shape):
                continue
            growth = self.inputs[planned.name].shape
            for extent, known, gain in zip(array.shape, planned.shape, growth, strict=True):
                if gain != 0 and (extent - known) * self.multiple % gain == 0:
                    return self.planned + (extent - known) * self.multiple // gain
        raise AutospError(
            f"the length of the sequence does not follow from the inputs: {', '.join(self.inputs)}",
            note=f"the graphs take {self}",
            help="give every graph input, whole (ranks take their slices), with its shape and type",
        )

    def grown(self, planned: Input, length: int) -> Input:
        """An input at a length."""
        growth = self.inputs.get(planned.name)
        if growth is None:
            return planned
        units = (length - self.planned) // self.multiple
        return dataclasses.replace(
            planned,
            shape=tuple(known + gain * units for known, gain in zip(planned.shape, growth.shape, strict=True)),
            slices=tuple(
                tuple(
                    slice(a.start + b.start * units, a.stop + b.stop * units) for a, b in zip(own, gains, strict=True)
                )
                for own, gains in zip(planned.slices, growth.slices, strict=True)
            ),
        )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `autosp-onnx shard` wrote into `folder`."""

    folder: pathlib.Path
    fields: dict[str, Any]  # the whole file
    inputs: tuple[Input, ...]  # of an open length: at the one that was planned for
    open_length: OpenLength | None = None

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

    def check_graphs(self) -> None:
        """Raises AutospError where a rank's graph is missing, as it is with other dialects alone."""
        for rank in range(self.ranks):
            if not self.graph(rank).is_file():
                raise AutospError(
                    f"'{self.graph(rank)}' is missing",
                    note="every rank runs a graph of its own",
                    help="shard the model again, with --dialect autosp",
                )

    @property
    def step_input(self) -> str | None:
        """The input that takes the number of the step, which decides random numbers; None: nothing is random."""
        return (self.fields.get("random") or {}).get("step_input") or None

    def at_length_of(self, arrays: Mapping[str, Array]) -> "Manifest":
        """The manifest at the length of whole inputs; itself where the graphs are for one length.

        Raises AutospError for a length that the graphs do not take.
        """
        if self.open_length is None:
            return self
        length = self.open_length.of(self.inputs, arrays)
        self.open_length.check(length)
        inputs = tuple(self.open_length.grown(planned, length) for planned in self.inputs)
        return dataclasses.replace(self, inputs=inputs, open_length=None)

    def select(self, arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
        """The whole inputs among `arrays`; step 0 where none is given.

        Raises AutospError when one is missing or has another type or shape, TypeError for what is no arrays by name.
        """
        if self.step_input is not None and _get(arrays, self.step_input) is None:
            arrays = {self.step_input: np.array(0, np.int64), **arrays}
        problems = []
        for expected in self.inputs:
            wanted = f"{expected.dtype}{list(expected.shape)}"
            array = _get(arrays, expected.name)
            if array is None:
                near = difflib.get_close_matches(expected.name, arrays, n=1, cutoff=0.8)
                problems.append(f"'{expected.name}' {wanted} is missing" + (f" (it has '{near[0]}')" if near else ""))
                continue
            some = array[:0] if array.ndim else array
            if (type_name(as_fed(some, expected.dtype)), array.shape) != (expected.dtype, expected.shape):
                problems.append(f"'{expected.name}' is {type_name(array)}{list(array.shape)}, not {wanted}")
        if problems:
            raise AutospError(
                f"{where} does not fit the model: {problems[0]}",
                note="; ".join(problems[1:4]) or "the manifest lists what the model takes",
                help="give every graph input, whole (ranks take their slices), with its shape and type",
            )
        return {expected.name: as_fed(arrays[expected.name], expected.dtype) for expected in self.inputs}

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
        open_length = _open_length(fields["open_length"]) if "open_length" in fields else None
        manifest = Manifest(pathlib.Path(folder), fields, inputs, open_length)
        _check_whole(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as failure:
        missing = isinstance(failure, KeyError)
        raise AutospError(
            f"'{os.fspath(folder)}' holds no sharded model: "
            + (f"its manifest lacks {failure}" if missing else str(failure)),
            note=f"looked for {path}",
            help="give the folder that 'autosp-onnx shard' wrote; shard the model again if it is damaged",
        ) from failure
    return manifest


def _check_whole(manifest: Manifest) -> None:
    """Raises ValueError, KeyError or TypeError where something is missing that will be read later."""
    if manifest.ranks < 1:
        raise ValueError("its manifest lists no ranks")
    for rank in range(manifest.ranks):
        manifest.graph(rank)
    for part in manifest.inputs:
        if part.slices and len(part.slices) != manifest.ranks:
            raise ValueError(f"its manifest has {len(part.slices)} slices of '{part.name}' for {manifest.ranks} ranks")
    _ = (manifest.signature, manifest.loss, manifest.gradients, manifest.step_input)


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
    manifest = read_manifest(folder).at_length_of(inputs)
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
    manifest = read_manifest(folder).at_length_of(inputs)
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


def _get(arrays: Mapping[str, Array], name: str) -> Array | None:
    """Raises TypeError for what is no arrays by name."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"inputs are {type(arrays).__name__}, not a mapping of numpy arrays by name")
    array = arrays.get(name)
    if array is None or isinstance(array, (np.ndarray, np.generic)):
        return array
    raise TypeError(f"input '{name}' is {type(array).__name__}, not a numpy array")


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
        slices=_slices(entry),
    )


def _slices(entry: dict[str, Any]) -> tuple[tuple[slice, ...], ...]:
    return tuple(
        tuple(slice(begin, begin + extent) for begin, extent in zip(part["begin"], part["extent"], strict=True))
        for part in entry["slices"]
    )


def _open_length(fields: dict[str, Any]) -> OpenLength:
    return OpenLength(
        dim=fields["dim"],
        planned=fields["planned"],
        multiple=fields["multiple"],
        minimum=fields["minimum"],
        maximum=fields["maximum"],
        inputs={
            entry["name"]: Input(entry["name"], "", tuple(entry["shape"]), False, _slices(entry))
            for entry in fields["inputs"]
        },
    )
