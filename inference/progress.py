"""How far a pass over a text is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def token_progress(total: int, what: str) -> tqdm[Any]:
    """A progress bar in tokens, with rate and time left, on stderr; silent without a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="tok", disable=None, file=sys.stderr, dynamic_ncols=True)
