"""Runs commands until the time is up, and keeps what came of each: report.json, report.md and failures.log."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_check.report import report_lines

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Check:
    """Runs commands until the time is up, and keeps what came of each."""

    def __init__(self, folder: pathlib.Path, scratch: pathlib.Path, minutes: float) -> None:
        self.folder, self.scratch = folder, scratch
        self.end = time.monotonic() + 60 * minutes
        self.lock = threading.RLock()
        self.environment = dict(os.environ)
        self.data: dict[str, Any] = {"checks": {}, "results": {}}
        if (folder / "report.json").exists():
            self.data = json.loads((folder / "report.json").read_text())
        self.rows = self.data["checks"]
        self.results = self.data["results"]

    def run(
        self,
        name: str,
        command: Sequence[Any],
        limit: float = 120,
        environment: Mapping[str, str] | None = None,
        **variables: str,
    ) -> str | None:
        """Standard output of the command, or None where it failed, lacks a part, or there was no time."""
        left = min(limit, self.end - time.monotonic())
        if left < 5 or None in command:
            self.note(name, "not run", 0)
            return None
        begin = time.monotonic()
        words = list(map(str, command))
        given = {**(self.environment if environment is None else environment), **variables}
        code, output, errors = outcome_of(words, left, given)
        passed = code == 0
        notes = [line for line in errors.splitlines() if passed and line.startswith("note: ")]
        self.note(name, "passed" if passed else f"failed ({code})", time.monotonic() - begin, notes)
        if not passed:
            self.keep(f"$ {' '.join(words)}\n{output[-20000:]}\n{errors[-20000:]}\n")
        return output if passed else None

    def note(self, name: str, outcome: str, seconds: float, notes: Sequence[str] = ()) -> None:
        with self.lock:
            self.rows[name] = {"outcome": outcome, "seconds": seconds, "notes": list(notes)}
            print(f"{outcome:<12} {seconds:7.1f} s  {name}", flush=True)
            self.write()

    def keep(self, text: str) -> None:
        with self.lock, open(self.folder / "failures.log", "a", encoding="utf-8") as log:
            if log.tell() < 8 << 20:
                log.write(text)

    def write(self) -> None:
        with self.lock:
            (self.folder / "report.json").write_text(json.dumps(self.data, indent=2) + "\n")
            (self.folder / "report.md").write_text("\n".join(report_lines(self.data)) + "\n")

    def failed(self) -> list[str]:
        return [name for name, row in self.rows.items() if row["outcome"].startswith("failed")]


def outcome_of(words: Sequence[str], limit: float, environment: Mapping[str, str]) -> tuple[int | str, str, str]:
    """Exit code, standard output and error. Late commands end with all processes that they have started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(
            words, **pipes, text=True, errors="replace", cwd=ROOT, env=environment, start_new_session=True
        )
    except OSError as error:
        return str(error), "", ""
    code = None
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        code = f"ended after {limit:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode if code is None else code, output, errors
