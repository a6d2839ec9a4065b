"""What the fixtures that run command lines are, and what they give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on stdout."""
        return json.loads(self.out)


class Command(Protocol):
    """The `command` fixture: runs a command line in this process."""

    def __call__(self, cli: click.Command, *arguments: object) -> Result: ...


class Convert(Protocol):
    """A fixture that converts a checkpoint with one command, and returns what that wrote."""

    def __call__(self, checkpoint: Path, *options: object, name: str = ...) -> Path: ...


class Direction(Protocol):
    """A fixture that runs any command of mconv: its name, the source, the name of what it writes."""

    def __call__(self, name: str, source: Path, out: str, *options: object) -> Path: ...


class Oracle(Protocol):
    """The `oracle` fixture: converts a checkpoint with llama.cpp's own converter."""

    def __call__(self, checkpoint: Path, outtype: str) -> Path: ...
