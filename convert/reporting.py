"""Sizes as people read and write them."""

from __future__ import annotations

import re

from mconv.convert.errors import UsageError


def parse_bytes(text: str) -> int:
    """A size as people write it, in decimal units: 5GB, 500MB, 1.5GB, 1000000.

    Raises:
        UsageError: it is not a size, or zero.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UsageError(f"{text!r} is not a valid size", "write it as 5GB or 500MB")
    return size


def format_bytes(count: int) -> str:
    """A size for people, in the decimal units that file listings use."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
