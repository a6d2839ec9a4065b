"""Short names for paths, by which a person tells them apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path's last part, and as many before it as it takes to tell it from the others."""
    parts = {path: PurePath(path).parts or (path,) for path in paths}
    names: dict[str, str] = {}
    for path, own in parts.items():
        others = [other for each, other in parts.items() if each != path]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[path] = str(PurePath(*own[-count:]))
    return names


def shortened(text: str, width: int = 30) -> str:
    """A text without its middle where it is too long: what tells names apart is mostly at their ends."""
    return text if len(text) <= width else f"{text[: width // 3]}\u2026{text[width // 3 + 1 - width :]}"
