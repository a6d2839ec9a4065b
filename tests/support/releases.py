"""Releases for the tests: a recipe of the bundled example that is measured in seconds, and processes that die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.paths import EVALUATION_TEXT, ROOT, TINY_MISTRAL

MODEL = TINY_MISTRAL
TEXT = EVALUATION_TEXT
STATES = ("build-state.json", "publish-state.json", ".measurements.json")

# Kills itself right before it would give the N-th file its name: every file of a release gets its name that way.
DYING = """
import os, pathlib, signal, sys
left, rename = int(sys.argv.pop(1)), pathlib.Path.replace
def replace(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.replace = replace
from mconv.release.cli import main
main()
"""


def write_recipe(path: Path, **members: Any) -> Path:
    """A recipe with these members besides, or instead; None leaves one out."""
    recipe: dict[str, Any] = {
        "schema_version": 1,
        "name": "tiny-mistral",
        "source": str(MODEL),
        "types": ["Q4_K_M", "Q8_0"],
        "texts": [str(TEXT)],
        "ctx": 32,
        "chunks": 2,
        "prompts": ["Once"],
        "repository": "rosa/tiny-mistral-GGUF",
        "extras": ["ollama", "oumi", "vllm"],
        **members,
    }
    # JSON's texts, numbers, truths and lists are TOML's.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in recipe.items() if value is not None]
    path.write_text("".join(lines))
    return path


def mrelease(*arguments: object, dies_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run mrelease in a process of its own, which may die before it renames its N-th file."""
    words = ["-m", "mconv.release.cli"] if dies_at is None else ["-c", DYING, str(dies_at)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def published(folder: Path) -> dict[str, bytes]:
    """Every file of a release, by its name, with its content."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in STATES}


def copy_release(recipe: Path, folder: Path) -> Path:
    """The recipe, and its release as it stands with the times of its files, somewhere else; returns the recipe."""
    shutil.copytree(recipe.parent, folder)
    return folder / recipe.name
