"""What the `command` fixture gives."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The object on stdout."""
        return json.loads(self.out)
