"""Places in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TINY_MISTRAL = EXAMPLES / "tiny-mistral"
EVALUATION_TEXT = EXAMPLES / "tiny-mistral-eval.txt"
