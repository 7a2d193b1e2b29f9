"""Writes a training graph and its inputs, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data


def strip_export_notes(model: onnx.ModelProto) -> None:
    """Drops stack traces and exporter notes: three quarters of a small graph's bytes, different on every machine."""
    graph = model.graph
    noted = [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for item in noted:
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    graph.doc_string = ""


def set_metadata(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Sets entries of the model's `metadata_props`, replacing those that exist."""
    kept = [entry for entry in model.metadata_props if entry.key not in entries]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)


def parameters_to_initializers(model: onnx.ModelProto, parameters: Mapping[str, np.ndarray]) -> None:
    """Turns parameter inputs into initializers of the same names.

    Done after export: an exporter that sees constants folds W and its transpose into two unrelated tensors.
    """
    kept = [value for value in model.graph.input if value.name not in parameters]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in parameters.items())


def write_graph(
    model: onnx.ModelProto, path: pathlib.Path, inputs: Mapping[str, np.ndarray] | None, external: frozenset[str]
) -> list[pathlib.Path]:
    """Writes `path`, the initializers named in `external` to `<path>.data`, and `inputs` to a sibling `.npz`.

    Each file is written under a temporary name and renamed, the graph last: a graph that exists is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    if inputs is not None:
        with _replacing(path.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, **inputs)
        written.append(path.with_suffix(".npz"))
    if external:
        data_path = path.with_name(path.name + ".data")
        with _replacing(data_path) as temporary:
            _move_to_external_file(model, external, pathlib.Path(temporary), data_path.name)
        written.append(data_path)
    with _replacing(path) as temporary:
        pathlib.Path(temporary).write_bytes(model.SerializeToString(deterministic=True))
    return [path, *written]


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[str]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _move_to_external_file(model: onnx.ModelProto, names: frozenset[str], file: pathlib.Path, location: str) -> None:
    with open(file, "wb") as stream:
        for tensor in model.graph.initializer:
            if tensor.name not in names:
                continue
            offset = stream.tell()
            stream.write(tensor.raw_data)
            set_external_data(tensor, location=location, offset=offset, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
            stream.write(b"\0" * (-stream.tell() % 64))
