"""The one exception of this package, and the sentence that every refusal is."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class CheckpointError(Exception):
    """A checkpoint that cannot be read, changed as asked, or written; ``path`` and ``tensor`` say where."""

    def __init__(self, message: str, path: Path | None = None, tensor: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.tensor = tensor


def sentence(function: str, argument: str, rule: str, got: Any, remedy: str = "") -> str:
    """``<function>: <argument> must <rule>, got <value>; <remedy>``."""
    text = f"{function}: {argument} must {rule}, got {got}"
    return f"{text}; {remedy}" if remedy else text


def reason(error: BaseException) -> str:
    """An exception's own words, without the number and the path that an OSError puts around them."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()).rstrip(".") or type(error).__name__


def shown(value: object) -> str:
    """A wrong argument in a sentence; of what may be long, as a state dict is, only the type."""
    short = value is None or isinstance(value, (bool, int, float, str, bytes))
    return repr(value) if short else type(value).__name__
