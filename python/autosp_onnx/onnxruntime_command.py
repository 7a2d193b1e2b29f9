"""autosp-onnx-ort OUT --feed NPZ: the ranks of a sharded model under MPI, each in stock ONNX Runtime.

The command starts mpirun, which starts it again once per rank. Ranks leave their reports, and what went wrong, in a
folder of the command's; so one message says what mpirun would say four times.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from typing import NoReturn

import numpy as np

from autosp_onnx import installation, process
from autosp_onnx.arrays import read_npz, write_npz
from autosp_onnx.errors import AutospError
from autosp_onnx.interrupts import TemporaryFolder
from autosp_onnx.manifest import Manifest, read_manifest

_BUG = 70


def main(arguments: list[str] | None = None) -> int:
    """The console script: returns the exit code (0, 2 for an error that a user can mend, 70 for a bug)."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    try:
        if options.worker is not None:
            _run_rank(options)
        return _launch(options)
    except AutospError as error:
        with contextlib.suppress(OSError):  # there may be no room for it either
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        return 128 + (interruption.args[0] if interruption.args else signal.SIGINT)


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="autosp-onnx-ort",
        description="Runs the ranks of a sharded model on this machine, in stock ONNX Runtime under mpirun.",
        epilog="Inputs are whole: each rank takes its slice, as OUT/manifest.json says. Outputs are the loss and the "
        "gradients, complete on every rank; --output writes rank 0's.",
    )
    parser.add_argument("folder", metavar="OUT", type=pathlib.Path, help="what 'autosp-onnx shard' wrote")
    parser.add_argument("--np", type=int, metavar="N", help="ranks; must be what the model was sharded for")
    parser.add_argument("--feed", type=pathlib.Path, required=True, metavar="NPZ", help="the graph inputs, whole")
    parser.add_argument("--output", type=pathlib.Path, metavar="NPZ", help="where to write the graph outputs")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="how long a collective waits (default 60)"
    )
    parser.add_argument("--json", action="store_true", help="prints the report as JSON")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)  # this process is a rank
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1e-3 <= (value := float(text)) <= 1e9:
            return value
    raise argparse.ArgumentTypeError(f"'{text}' is no number from 0.001 to 1e9")


# --- The command.


def _launch(options: argparse.Namespace) -> int:
    manifest = _prepare(options)
    with TemporaryFolder() as reports:
        code, _, error = _mpirun(options, manifest, reports)
        if code != 0:
            raise _first_failure(pathlib.Path(reports), error, code)
        texts = [(pathlib.Path(reports) / f"rank_{rank}.json").read_text() for rank in range(manifest.ranks)]
        _print_report(options, [json.loads(text) for text in texts])
    return 0


def _prepare(options: argparse.Namespace) -> Manifest:
    """What one message here says better than every rank."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMIX_RANK" in os.environ:
        raise AutospError(
            "mpirun has started this process",
            note="autosp-onnx-ort starts mpirun by itself",
            help="run it without mpirun",
        )
    installation.require_onnxruntime()
    manifest = read_manifest(options.folder)
    if options.np not in (None, manifest.ranks):
        raise AutospError(
            f"'{options.folder}' is sharded over {manifest.ranks} ranks, but {options.np} are to run",
            note="every rank runs a graph of its own",
            help=f"run it with {manifest.ranks} ranks, or shard the model again",
        )
    manifest.check_graphs()
    given = read_npz(options.feed)
    manifest.at_length_of(given).select(given, f"'{options.feed}'")
    if options.output is not None:
        _check_output(options, manifest)
    return manifest


def _check_output(options: argparse.Namespace, manifest: Manifest) -> None:
    output: pathlib.Path = options.output
    target = output.resolve()
    reason = None
    if output.is_dir():
        reason = "it is a folder"
    elif not target.parent.is_dir():
        reason = f"there is no folder '{target.parent}'"
    elif not os.access(target if target.exists() and not target.is_file() else target.parent, os.W_OK):
        reason = "you may not write there"
    elif target == options.feed.resolve():
        reason = "--feed reads it"
    elif target.exists() and target.parent == manifest.folder.resolve() and target.suffix != ".npz":
        reason = "it is a file of the sharded model"
    if reason:
        raise AutospError(
            f"--output '{output}' cannot be written: {reason}",
            note="looked at before the run, which has not begun",
            help="name a file in a folder that exists and that you may write to",
        )


def _mpirun(options: argparse.Namespace, manifest: Manifest, reports: str) -> tuple[int, str, str]:
    worker = [sys.executable, "-m", "autosp_onnx.onnxruntime_command", str(options.folder), "--feed", str(options.feed)]
    worker += ["--timeout", str(options.timeout), "--worker", reports]
    worker += ["--output", str(options.output)] if options.output is not None else []
    # Containers run as root, which Open MPI asks to confirm.
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(manifest.ranks), *worker]
    try:
        return process.run(command, environment=environment)
    except FileNotFoundError as failure:
        raise AutospError(
            "mpirun could not be started: there is none",
            note="autosp-onnx-ort starts the ranks with it",
            help="install Open MPI (Debian: openmpi-bin)",
        ) from failure


def _first_failure(reports: pathlib.Path, mpirun_said: str, code: int) -> AutospError:
    """Of the rank that failed first; the others end because of it."""
    failures = sorted(reports.glob("failure_*.json"), key=lambda path: path.stat().st_mtime_ns)
    if failures:
        fields = json.loads(failures[0].read_text())
        return AutospError(fields["message"], note=fields["note"], help=fields["help"], exit_code=fields["exit_code"])
    return AutospError(
        f"mpirun ended with exit code {code}\n{mpirun_said.strip()}",
        note="no rank has said why",
        help="a rank may have been killed, for example for its memory",
    )


def _print_report(options: argparse.Namespace, ranks: list[dict[str, object]]) -> None:
    problem = "it is closed"
    if sys.stdout is not None:
        try:
            _report(options, ranks)
            sys.stdout.flush()
            return
        except OSError as failure:
            problem = failure.strerror
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
    raise AutospError(
        f"the report could not be printed: {problem}",
        note="standard output leads to a file or device that does not take it",
        help="send it somewhere with room, or to a terminal",
    )


def _report(options: argparse.Namespace, ranks: list[dict[str, object]]) -> None:
    if options.json:
        report = {"folder": str(options.folder), "transport": "mpi", "runtime": ranks[0]["runtime"], "ranks": ranks}
        report |= {"output": str(options.output)} if options.output is not None else {}
        print(json.dumps(report, indent=2))
        return
    print(f"{len(ranks)} rank{'s' if len(ranks) > 1 else ''} ({ranks[0]['runtime']}, mpi)")
    print(f"{'rank':>4} {'loss':>14} {'seconds':>9}")
    for rank in ranks:
        loss = rank["loss"]
        print(f"{rank['rank']:>4} {'not finite' if loss is None else format(loss, '.7g'):>14} {rank['seconds']:>9.3f}")
    if options.output is not None:
        print(f"wrote {options.output}")


# --- A rank.


def _run_rank(options: argparse.Namespace) -> NoReturn:
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMIX_RANK", "0")))
    try:
        report = _step(options, rank)
    except AutospError as error:
        failure = {"message": error.args[0], "note": error.note, "help": error.help, "exit_code": error.exit_code}
    except Exception as error:
        failure = {"message": f"rank {rank}: {error!r}", "note": "", "help": "report this bug", "exit_code": _BUG}
    else:
        _leave(options.worker / f"rank_{rank}.json", report)
        sys.exit(0)  # MPI is finalised on the way
    _leave(options.worker / f"failure_{rank}.json", failure)
    os._exit(int(failure["exit_code"]))  # without that: mpirun then ends the other ranks


def _step(options: argparse.Namespace, rank: int) -> dict[str, object]:
    import onnxruntime  # not needed where the command only reports an error

    from autosp_onnx.onnxruntime_ranks import RankSession, session_options

    manifest = read_manifest(options.folder)
    threads = max(1, len(os.sched_getaffinity(0)) // manifest.ranks)
    session = RankSession(manifest, rank, session_options(timeout=options.timeout, threads=threads))
    given = read_npz(options.feed)
    manifest = manifest.at_length_of(given)
    whole = manifest.select(given, f"'{options.feed}'")
    del given
    fed = {part.name: part.of_rank(whole.pop(part.name), rank) for part in manifest.inputs}
    began = time.perf_counter()
    outputs = session.run(fed)
    seconds = time.perf_counter() - began
    if rank == 0 and options.output is not None:
        write_npz(options.output, outputs)
    loss = float(outputs[manifest.loss]) if manifest.loss is not None else None
    return {
        "rank": rank,
        "loss": loss if loss is not None and np.isfinite(loss) else None,
        "seconds": seconds,
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
    }


def _leave(path: pathlib.Path, fields: dict[str, object]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(fields))
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
