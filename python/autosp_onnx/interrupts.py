"""What a Ctrl-C must not come in between."""

import contextlib
import signal
import tempfile
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A Ctrl-C in the block counts from its end: Python raises KeyboardInterrupt anywhere else."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # no KeyboardInterrupt comes here
        return
    waiting = []
    signal.signal(signal.SIGINT, lambda *arguments: waiting.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A folder that is gone in the end, whenever the program is interrupted."""

    def __init__(self) -> None:
        with deferred():
            super().__init__(prefix="autosp-onnx-")

    def cleanup(self) -> None:
        with deferred():
            super().cleanup()
