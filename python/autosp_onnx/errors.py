"""Errors a caller can act on."""


class AutospError(Exception):
    """What went wrong, where that came from, and what to do about it.

    Attributes:
        exit_code: of the command that failed: 2 for what a user can mend, 70 for a bug of autosp-onnx.
    """

    def __init__(self, message: str, *, note: str = "", help: str = "", exit_code: int = 2) -> None:
        super().__init__(message)
        self.note = note
        self.help = help
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [str(self.args[0]).removeprefix("error: ")]
        lines += [f"note: {self.note}"] if self.note else []
        lines += [f"help: {self.help}"] if self.help else []
        return "\n".join(lines)
