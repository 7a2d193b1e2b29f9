"""Values out of what commands and the driver leave: JSON, arrays' shapes, tests' outcomes, memory in use."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import threading
import zipfile
from typing import Any


def parsed(text: str | None) -> Any:
    """The JSON object of a command's last line, or of all of it."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return json.loads(text.strip().splitlines()[-1])


def of(row: Any, *keys: str) -> Any:
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def shapes_in(feed: pathlib.Path) -> dict[str, list[int]]:
    """Array -> shape, of an .npz."""
    shapes = {}
    with zipfile.ZipFile(feed) as archive:
        for name in archive.namelist():
            header = archive.open(name).read(512).decode("latin-1")
            text = re.search(r"'shape': \(([^)]*)\)", header)[1]
            shapes[name.removesuffix(".npy")] = [int(extent) for extent in text.split(",") if extent.strip()]
    return shapes


def outcomes_in(file: pathlib.Path) -> dict[str, str]:
    """Test -> passed, failed or skipped, of a report of GoogleTest; nothing where its process died."""
    if not file.exists() or not file.stat().st_size:
        return {}
    outcomes = {}
    for suite in json.loads(file.read_text())["testsuites"]:
        for test in suite["testsuite"]:
            kind = "failed" if test.get("failures") else "skipped" if test["result"] == "SKIPPED" else "passed"
            outcomes[f"{suite['name']}.{test['name']}"] = kind
    return outcomes


class Watch:
    """The most memory that the driver says is in use, of all devices, while this is entered."""

    def __enter__(self) -> Watch:
        self.peak = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def look(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.done.wait(0.2):
            try:
                answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
                self.peak = max(self.peak, max(int(line) for line in answer.split()) << 20)
            except (OSError, ValueError, subprocess.SubprocessError):
                return
