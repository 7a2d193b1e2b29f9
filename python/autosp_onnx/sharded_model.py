"""Sharding a model and running the result, from Python."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from autosp_onnx import installation, process
from autosp_onnx.arrays import Array, read_npz, write_npz
from autosp_onnx.errors import AutospError
from autosp_onnx.manifest import Manifest, feed, read_manifest

if TYPE_CHECKING:
    import onnx

_LARGEST_MESSAGE = 2**31 - 1  # bytes of a protocol buffer
_MISMATCH = 1

Option = str | int | bool | Sequence[str] | Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Validation:
    """What `autosp-onnx validate` found.

    Attributes:
        equal: loss and every gradient are, on every rank, those of the whole model, and finite.
        report: as the command prints it with --json: the losses, and each output's error and tolerance.
    """

    equal: bool
    report: dict[str, Any]

    def __bool__(self) -> bool:
        return self.equal


class ShardedModel:
    """A folder of rank graphs. A temporary one is removed by close(), at the end of `with`, or with the object."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | None = None,
        *,
        temporary: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        """Opens what `autosp-onnx shard` wrote.

        Args:
            folder: with a manifest.json.
            model: the unsharded model, for validate().
            temporary: what holds both, if they are to go with this object.

        Raises:
            AutospError: the folder holds no sharded model.
        """
        self.manifest: Manifest = read_manifest(folder)
        self.model = None if model is None else pathlib.Path(model)
        self._temporary = temporary

    @property
    def folder(self) -> pathlib.Path:
        return self.manifest.folder

    @property
    def ranks(self) -> int:
        return self.manifest.ranks

    def close(self) -> None:
        """Removes the folder if it is temporary."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "ShardedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def feed(self, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """What each rank is fed of whole inputs: see autosp_onnx.feed."""
        return feed(self.folder, inputs)

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        runtime: Literal["executor", "onnxruntime"] = "executor",
        transport: Literal["threads", "mpi"] = "threads",
        timeout: float = 60.0,
    ) -> dict[str, Array]:
        """One training step on all ranks.

        Args:
            inputs: every graph input, whole, with the manifest's shapes and types.
            runtime: "executor": the bundled one, in a child process; "onnxruntime": the installed one, a session per
                rank, in threads of this process or under mpirun.
            transport: "threads", or "mpi": a process per rank.
            timeout: seconds that a collective waits for other ranks.

        Returns:
            The loss (shape []) and every gradient (its parameter's shape), by output name, as rank 0 has them; every
            rank has the same. bfloat16 comes as 2-byte void (view it as ml_dtypes.bfloat16).

        Raises:
            AutospError: an input is missing or does not fit, or a rank failed.
        """
        whole = self.manifest.at_length_of(inputs).select(inputs, "the batch")
        if runtime == "onnxruntime":
            installation.require_onnxruntime()
        if runtime == "onnxruntime" and transport == "threads":
            from autosp_onnx.onnxruntime_ranks import run_in_threads

            return run_in_threads(self.manifest, whole, timeout=timeout)[0]
        with _temporary_folder() as folder:
            write_npz(folder / "inputs.npz", whole)
            options = [str(self.folder), "--np", str(self.ranks), "--timeout", str(timeout)]
            options += ["--feed", str(folder / "inputs.npz"), "--output", str(folder / "outputs.npz")]
            if runtime == "executor":
                process.call("run", *options, "--transport", transport)
            else:
                process.call_module("autosp_onnx.onnxruntime_command", *options)
            outputs = read_npz(folder / "outputs.npz")
        return {output["name"]: outputs[output["name"]] for output in self.manifest.fields["outputs"]}

    def validate(
        self,
        inputs: Mapping[str, Array] | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        tolerance: float | None = None,
    ) -> Validation:
        """Compares loss and every gradient, on every rank, with the whole model's.

        Args:
            inputs: every graph input, whole; generated when left out.
            model: the unsharded model; what was given to shard() when left out.
            tolerance: relative error allowed; that of the element type when left out.

        Raises:
            AutospError: there is no unsharded model, or it does not belong to this folder, or inputs do not fit.
        """
        whole = self.model if model is None else pathlib.Path(model)
        if whole is None:
            raise AutospError(
                "there is no unsharded model to compare with",
                note=f"'{self.folder}' was opened without",
                help="give validate() the model",
            )
        with _temporary_folder() as folder:
            options = ["--json"] + ([] if tolerance is None else ["--tolerance", repr(tolerance)])
            if inputs is not None:
                whole_inputs = self.manifest.at_length_of(inputs).select(inputs, "the batch")
                write_npz(folder / "inputs.npz", whole_inputs)
                options += ["--feed", str(folder / "inputs.npz")]
            code, report = process.call("validate", whole, self.folder, *options, accept=(0, _MISMATCH))
        return Validation(code == 0, json.loads(report))


def shard(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    sp: int | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    **options: Option,
) -> ShardedModel:
    """Splits a training graph over ranks, as `autosp-onnx shard` does.

    Args:
        model: a file, or a model in memory.
        sp: ranks that share one sequence. 1, or what sp_mesh multiplies to, when left out.
        output: the folder to write; a temporary one, which goes with the result, when left out.
        data_folder: of a model in memory: what the locations of its external data are relative to.
        options: those of the command, with _ for -: dim={"seq": 40}, dp=2, recompute="sac", strict=True,
            seq=["input_ids:1"], dialect="autosp,standard". A mapping gives NAME=VALUE once for each entry.

    Raises:
        AutospError: the model cannot be sharded so, or an option means nothing; its lines say what to do.
        KeyboardInterrupt: leaves no process and no file behind.
    """
    if output is not None and isinstance(model, str | os.PathLike):
        process.call("shard", model, "-o", output, *_words({"sp": sp, **options}))
        return ShardedModel(output, model)
    temporary = tempfile.TemporaryDirectory(prefix="autosp-onnx-")
    try:
        path = _file_of(model, data_folder, pathlib.Path(temporary.name) / "model")
        folder = pathlib.Path(temporary.name) / "out" if output is None else pathlib.Path(output)
        process.call("shard", path, "-o", folder, *_words({"sp": sp, **options}))
        return ShardedModel(folder, path, temporary=temporary)
    except BaseException:
        temporary.cleanup()
        raise


def _words(options: Mapping[str, Option | None]) -> Iterator[str]:
    for key, value in options.items():
        name = f"--{key.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            yield name
        elif isinstance(value, Mapping):
            for entry, bound in value.items():
                yield f"{name}={entry}={bound}"
        elif isinstance(value, str | int | float | os.PathLike):
            yield f"{name}={value}"
        else:
            for entry in value:
                yield f"{name}={entry}"


def _file_of(
    model: "onnx.ModelProto | str | os.PathLike[str]", data_folder: str | os.PathLike[str] | None, folder: pathlib.Path
) -> pathlib.Path:
    """A model in memory as a file in `folder`, with its external data beside it."""
    if isinstance(model, str | os.PathLike):
        return pathlib.Path(model)
    folder.mkdir()
    path = folder / "model.onnx"
    for location in sorted(_external_locations(model)):
        if data_folder is None:
            raise AutospError(
                f"the model keeps weights in '{location}'",
                note="a model in memory does not say which folder that is in",
                help="give data_folder, or load the model with its external data",
            )
        _place(pathlib.Path(data_folder) / location, folder / location)
    if model.ByteSize() <= _LARGEST_MESSAGE:
        path.write_bytes(model.SerializeToString())
        return path
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of what it saves
    onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def _external_locations(model: "onnx.ModelProto") -> set[str]:
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if tensor.data_location == tensor.EXTERNAL and entry.key == "location"
    }


def _place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Makes a file appear elsewhere; without a copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
    except OSError as failure:
        raise AutospError(
            f"external data '{source}' cannot be read: {failure.strerror}",
            note="the model keeps weights there",
            help="give the folder that holds it as data_folder",
        ) from failure


class _temporary_folder:
    """As tempfile.TemporaryDirectory, but a path."""

    def __enter__(self) -> pathlib.Path:
        self._folder = tempfile.TemporaryDirectory(prefix="autosp-onnx-")
        return pathlib.Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
