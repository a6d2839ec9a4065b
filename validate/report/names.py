"""Short names for paths that are still distinct."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

# A model in the Hub's cache; seven digits of a commit are enough for people.
_CACHED = re.compile(r".*/models--(.+)/snapshots/([0-9a-f]{7})[0-9a-f]{33}")


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each path, with as many parent folders as needed to distinguish it from the others.

    A model in the Hub's cache is `ORGANIZATION/NAME@COMMIT`.
    """
    parts = {path: _parts(path) for path in paths}
    names: dict[str, str] = {}
    for path, own in parts.items():
        others = [other for each, other in parts.items() if each != path]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[path] = str(PurePath(*own[-count:]))
    return names


def _parts(path: str) -> tuple[str, ...]:
    cached = _CACHED.fullmatch(path)
    if cached:
        return (f"{cached[1].replace('--', '/')}@{cached[2]}",)
    return PurePath(path).parts or (path,)


def shortened(text: str, width: int = 30) -> str:
    """A text without its middle if it is too long: names differ mostly at their ends."""
    return text if len(text) <= width else f"{text[: width // 3]}\u2026{text[width // 3 + 1 - width :]}"
