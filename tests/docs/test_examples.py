"""Examples in the documentation print what the documentation shows, where that depends on nothing but the code."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from support.paths import EXAMPLES, ROOT

PAGES = (
    "tutorial/first-release.md",
    "how-to/choose-a-type.md",
    "reference/json.md",
    "reference/mconv.md",
    "reference/mquant.md",
    "reference/mval.md",
)
MODULES = {
    "mconv": "mconv.convert.cli.main",
    "mquant": "mconv.quantize.cli",
    "mval": "mconv.validate.cli",
    "mrelease": "mconv.release.cli",
}
# Measured numbers differ in their last digits from machine to machine, and take long.
EXACT = ("mconv", "mquant", "mval weights", "mrelease init")


@pytest.mark.parametrize("name", PAGES)
def test_examples_print_what_is_shown(name: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    ran = 0
    for command, shown in examples(ROOT / "docs" / name):
        if not command.startswith(EXACT) or not source(command, tmp_path):
            continue
        printed = run(command, tmp_path)
        if shown:
            assert printed == shown, command
        ran += 1
    assert ran


def examples(path: Path) -> list[tuple[str, str]]:
    """Each command in a console block, and the output that is shown below it."""
    found = []
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "console":
            for part in ("\n" + token.content.replace("\\\n", " ")).split("\n$ ")[1:]:
                command, _, shown = part.partition("\n")
                found.append((command, shown.rstrip("\n")))
    return found


def source(command: str, folder: Path) -> bool:
    """Whether what the command reads is there: the bundled example, or what an example before it wrote."""
    words = shlex.split(command)
    first = words[2] if words[0] in ("mconv", "mval", "mrelease") else words[1]
    return (folder / first).exists()


def run(command: str, folder: Path) -> str:
    """What a shell prints for the command, without notes."""
    functions = "".join(f'{name}() {{ "{sys.executable}" -m {module} "$@"; }}; ' for name, module in MODULES.items())
    result = subprocess.run(
        ["bash", "-c", functions + command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        check=False,
        text=True,
    )
    return "\n".join(line for line in result.stdout.splitlines() if not line.startswith("note: "))
