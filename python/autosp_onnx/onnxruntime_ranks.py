"""Rank graphs in stock ONNX Runtime, whose collectives come from the library of this package."""

import ctypes
import pathlib
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from autosp_onnx import installation
from autosp_onnx.arrays import Array
from autosp_onnx.errors import AutospError
from autosp_onnx.manifest import Manifest

_COLLECTIVE_FAILED = "ended because another rank failed"


def session_options(
    *, timeout: float = 60.0, threads: int = 1, settings: Mapping[str, object] | None = None
) -> onnxruntime.SessionOptions:
    """Options under which every rank runs its graph as it is written, node by node.

    Other levels of optimisation and orders do too: tokens keep the order of collectives, barriers what is recomputed.

    Args:
        timeout: seconds that a collective waits for other ranks. Under MPI, that of a process's first session holds.
        threads: of a rank's operators.
        settings: session config entries "autosp." + key (docs/other_runtimes.md).

    Raises:
        AutospError: the library of collectives is missing, or refuses a setting.
    """
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come as exceptions
    for key, value in {"timeout": timeout, **(settings or {})}.items():
        options.add_session_config_entry(f"autosp.{key}", str(value))
    try:
        options.register_custom_ops_library(str(installation.collectives_library()))
    except Exception as failure:
        raise _error(failure) from failure
    return options


class RankSession:
    """One rank's graph in a session."""

    def __init__(self, manifest: Manifest, rank: int, options: onnxruntime.SessionOptions) -> None:
        """Raises AutospError when the graph does not load, or is another rank's or another plan's."""
        path = manifest.graph(rank)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as failure:
            raise _error(failure) from failure
        signed = self._session.get_modelmeta().custom_metadata_map
        if signed.get("autosp.rank") != str(rank):
            raise _foreign(path, f"of rank {signed.get('autosp.rank')}, not of rank {rank}")
        if signed.get("autosp.plan") != manifest.signature:
            raise _foreign(path, "by another plan or of another model than the manifest")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One step.

        Args:
            inputs: this rank's part of every graph input (Manifest.of_rank).

        Returns:
            The graph outputs: the loss and every gradient, whole.

        Raises:
            AutospError: an operator or a collective failed.
        """
        wanted = {node.name: node.type for node in self._session.get_inputs()}
        fed = {name: _ort_value(array, wanted[name]) for name, array in inputs.items() if name in wanted}
        names = [node.name for node in self._session.get_outputs()]
        try:
            values = self._session.run_with_ort_values(names, fed)
        except Exception as failure:
            raise _error(failure) from failure
        return {name: _array(value) for name, value in zip(names, values, strict=True)}


def run_in_threads(
    manifest: Manifest, inputs: Mapping[str, Array], *, timeout: float = 60.0, threads_per_rank: int = 1
) -> list[dict[str, Array]]:
    """All ranks in this process, one session and one thread each.

    Args:
        manifest: of the sharded model.
        inputs: every graph input, whole.
        timeout: seconds that a collective waits for other ranks.
        threads_per_rank: of a rank's operators.

    Returns:
        Every rank's outputs.

    Raises:
        AutospError: of the rank that failed first.
    """
    manifest = manifest.at_length_of(inputs)
    whole = manifest.select(inputs, "the batch")
    name = uuid.uuid4().hex
    world = {"transport": "threads", "world": name, "ranks": manifest.ranks}
    sessions = [
        RankSession(
            manifest, rank, session_options(timeout=timeout, threads=threads_per_rank, settings={**world, "rank": rank})
        )
        for rank in range(manifest.ranks)
    ]
    results: list[dict[str, Array]] = [{} for _ in sessions]
    failures: list[BaseException] = []

    def step(rank: int) -> None:
        try:
            results[rank] = sessions[rank].run(manifest.of_rank(whole, rank))
        except BaseException as failure:
            failures.append(failure)
            _fail_rank(name, rank, str(failure))

    ranks = [threading.Thread(target=step, args=(rank,), daemon=True) for rank in range(manifest.ranks)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    if failures:
        raise min(failures, key=lambda failure: _COLLECTIVE_FAILED in str(failure))
    return results


def _fail_rank(world: str, rank: int, reason: str) -> None:
    """The other ranks wait for this one no longer, wherever it failed."""
    library = ctypes.CDLL(str(installation.collectives_library()))  # the runtime has opened it
    library.AutospFailRank(world.encode(), rank, reason.encode(errors="replace"))


def _foreign(path: pathlib.Path, what: str) -> AutospError:
    return AutospError(
        f"the graph '{path}' is {what}", note="the graphs of one folder belong together", help="shard the model again"
    )


def _error(failure: BaseException) -> AutospError:
    """What our library or the runtime says went wrong."""
    if isinstance(failure, AutospError):
        return failure
    text = str(failure)
    _, separator, own = text.partition("error: ")
    if not separator:
        return AutospError(text, note="ONNX Runtime says so", help="check the rank graphs with 'autosp-onnx run'")
    message, _, rest = own.partition("\nnote: ")
    note, _, help = rest.partition("\nhelp: ")
    return AutospError(message, note=note.replace("\nnote: ", "; "), help=help)


def _ort_value(array: Array, type: str) -> Any:
    if type == "tensor(bfloat16)":
        bits = np.ascontiguousarray(array).view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _array(value: Any) -> Array:
    return np.asarray(value.numpy())
