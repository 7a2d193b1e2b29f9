"""Sharding a model and running the result, from Python."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from autosp_onnx import installation, process
from autosp_onnx.arrays import Array, read_npz, write_npz
from autosp_onnx.errors import AutospError
from autosp_onnx.interrupts import TemporaryFolder
from autosp_onnx.manifest import Manifest, feed, read_manifest

if TYPE_CHECKING:
    import onnx

_LARGEST_MESSAGE = 2**31 - 1  # bytes of a protocol buffer
_SMALL_TENSOR = 1024  # bytes; such stay in the model's file
_ALIGNMENT = 4096  # of weights in their file, so that it can be mapped
_MISMATCH = 1

Option = str | int | float | bool | os.PathLike[str] | Sequence[str] | Mapping[str, object]
Runtime = Literal["executor", "onnxruntime"]
Transport = Literal["threads", "mpi"]


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
        temporary: TemporaryFolder | None = None,
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
        runtime: Runtime = "executor",
        transport: Transport = "threads",
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
            ValueError: there is no such runtime or transport.
        """
        _check_choice("runtime", runtime, get_args(Runtime))
        _check_choice("transport", transport, get_args(Transport))
        whole = self.manifest.at_length_of(inputs).select(inputs, "the batch")
        if runtime == "onnxruntime":
            installation.require_onnxruntime()
            self.manifest.check_graphs()
        if runtime == "onnxruntime" and transport == "threads":
            from autosp_onnx.onnxruntime_ranks import run_in_threads

            return run_in_threads(self.manifest, whole, timeout=timeout)[0]
        with TemporaryFolder() as name:
            folder = pathlib.Path(name)
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
        with TemporaryFolder() as name:
            folder = pathlib.Path(name)
            options = ["--json"] + ([] if tolerance is None else ["--tolerance", repr(tolerance)])
            if inputs is not None:
                whole_inputs = self.manifest.at_length_of(inputs).select(inputs, "the batch")
                write_npz(folder / "inputs.npz", whole_inputs)
                options += ["--feed", str(folder / "inputs.npz")]
            code, report = process.call("validate", whole, self.folder, *options, accept=(0, _MISMATCH))
        return Validation(code == 0, json.loads(report))


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, not one of {', '.join(map(repr, choices))}")


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
        TypeError: the model is neither a file nor a model in memory.
        KeyboardInterrupt: leaves no process and no file behind.
    """
    if not isinstance(model, str | os.PathLike) and not hasattr(model, "SerializeToString"):
        raise TypeError(f"model is {type(model).__name__}, not the path of a file or an onnx.ModelProto")
    if output is not None and isinstance(model, str | os.PathLike):
        process.call("shard", model, "-o", output, *_words({"sp": sp, **options}))
        return ShardedModel(output, model)
    temporary = TemporaryFolder()
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
    locations = sorted(_external_locations(model))
    for location in locations:
        _check_location(location)
        if data_folder is None:
            raise AutospError(
                f"the model keeps weights in '{location}'",
                note="a model in memory does not say which folder that is in",
                help="give data_folder, or load the model with its external data",
            )
    folder.mkdir()
    for location in locations:
        _place(pathlib.Path(str(data_folder)) / location, folder / location)
    path = folder / _unused("model.onnx", locations)
    text = _message(model)
    if text is None:
        text = _without_weights(model, folder / _unused("weights.bin", locations))
    path.write_bytes(text)
    return path


def _external_locations(model: "onnx.ModelProto") -> set[str]:
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if tensor.data_location == tensor.EXTERNAL and entry.key == "location"
    }


def _check_location(location: str) -> None:
    """Before anything is placed there: a model may come from anybody."""
    path = pathlib.PurePath(location)
    if path.parts and not path.is_absolute() and ".." not in path.parts and "\0" not in location:
        return
    raise AutospError(
        f"the model keeps weights in '{location}', which leads out of its folder",
        note="ONNX allows files in the model's folder and below it",
        help="save the model again with its external data beside it",
    )


def _unused(name: str, locations: Sequence[str]) -> str:
    """What is written must not be a link to a file of the user's."""
    taken = {pathlib.PurePath(location).parts[0] for location in locations}
    while name in taken:
        name = f"_{name}"
    return name


def _message(model: "onnx.ModelProto") -> bytes | None:
    """The model as one protocol buffer; None when it is too large for that."""
    from google.protobuf.message import Error

    try:
        text: bytes = model.SerializeToString()
    except (Error, ValueError):
        return None
    return text if len(text) <= _LARGEST_MESSAGE else None


def _without_weights(model: "onnx.ModelProto", weights: pathlib.Path) -> bytes:
    """Writes the large initializers to a file, one after the other, and gives the model that refers to it.

    Nothing is copied as a whole, and the model stays as it is.
    """
    import onnx

    light = onnx.ModelProto()
    _copy_fields(model, light, but="graph")
    _copy_fields(model.graph, light.graph, but="initializer")
    with open(weights, "wb") as file:
        for tensor in model.graph.initializer:
            _copy_initializer(tensor, light.graph.initializer.add(), file)
    return light.SerializeToString()


def _copy_fields(source: Any, target: Any, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "ListFields"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _copy_initializer(tensor: "onnx.TensorProto", target: "onnx.TensorProto", file: BinaryIO) -> None:
    from onnx import numpy_helper

    # Types of other widths lie in fields of wider ones, which onnx's versions read differently.
    plain = (tensor.FLOAT, tensor.DOUBLE, tensor.INT32, tensor.INT64)
    numbers = tensor.data_location != tensor.EXTERNAL and (tensor.raw_data or tensor.data_type in plain)
    if not numbers or tensor.ByteSize() < _SMALL_TENSOR:
        target.CopyFrom(tensor)
        return
    raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
    place = {"location": pathlib.Path(file.name).name, "offset": file.tell(), "length": len(raw)}
    file.write(raw)
    target.name, target.data_type, target.data_location = tensor.name, tensor.data_type, tensor.EXTERNAL
    target.dims.extend(tensor.dims)
    for key, value in place.items():
        target.external_data.add(key=key, value=str(value))


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
