"""Child processes that end when their parent is interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from autosp_onnx import installation
from autosp_onnx.errors import AutospError
from autosp_onnx.interrupts import deferred

_SECONDS_TO_END = 10.0  # for mpirun to end its ranks


def run(
    command: Sequence[str | os.PathLike[str]], *, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Runs a command to its end: exit code, standard output, standard error.

    The command gets a process group of its own, so that a Ctrl-C reaches it once: from here. On any exception
    (KeyboardInterrupt among them) it is interrupted, then killed, and waited for, before the exception goes on.
    """
    child = None
    try:
        with deferred():
            child = _start(command, environment)
        output, error = child.communicate()
    except BaseException:
        if child is not None:
            _end(child)
        raise
    return child.returncode, output, error


def _start(
    command: Sequence[str | os.PathLike[str]], environment: dict[str, str] | None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [os.fspath(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )


def _end(child: "subprocess.Popen[str]") -> None:
    """Also when this is interrupted in its turn."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            _send(child, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=_SECONDS_TO_END)
                return
    finally:
        if child.poll() is None:
            _send(child, signal.SIGKILL)
            child.wait()


def _send(child: "subprocess.Popen[str]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def call(*arguments: str | os.PathLike[str], accept: Sequence[int] = (0,)) -> tuple[int, str]:
    """Calls autosp-onnx: exit code and standard output. Raises AutospError for exit codes that are not in `accept`."""
    code, output, error = run([installation.binary(), *arguments])
    if code in accept:
        return code, output
    raise error_of(error, code)


def call_module(module: str, *arguments: str) -> None:
    """Runs a module of this package as a program. Raises AutospError when it fails."""
    code, _, error = run([sys.executable, "-m", module, *arguments])
    if code != 0:
        raise error_of(error, code)


def error_of(text: str, code: int) -> AutospError:
    """The error that a command printed: lines that begin with "error: ", "note: " and "help: "."""
    lines = text.strip().splitlines()
    parts: dict[str, list[str]] = {"error": [], "note": [], "help": []}
    for line in lines:
        kind, separator, rest = line.partition(": ")
        if separator and kind in parts:
            parts[kind].append(rest)
    message = "; ".join(parts["error"]) or text.strip() or f"autosp-onnx ended with exit code {code}"
    return AutospError(message, note="; ".join(parts["note"]), help="; ".join(parts["help"]), exit_code=code)


def main() -> None:
    """The console script autosp-onnx: becomes the binary."""
    try:
        program = installation.binary()
    except AutospError as error:
        sys.exit(f"error: {error}")
    os.execv(program, ["autosp-onnx", *sys.argv[1:]])
