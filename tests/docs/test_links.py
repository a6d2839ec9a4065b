"""The documentation holds: links and anchors lead somewhere, and commands in it have the options that they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mconv.convert.cli.main import cli as mconv
from mconv.quantize.cli import cli as mquant
from mconv.release.cli import cli as mrelease
from mconv.validate.cli import cli as mval

from support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = {"mconv": mconv, "mquant": mquant, "mval": mval, "mrelease": mrelease}
SHELL_OPERATORS = {"&&", "||", "|", ";", ">", "2>"}

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@page
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_pages_that_the_code_names_exist() -> None:
    folders = ("convert", "inference", "quantize", "validate", "release", "examples", "benchmarks")
    named = {
        (path.name, name)
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"(?<!ggml )\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).is_file()] == []


@page
def test_options_in_examples_exist(path: Path) -> None:
    unknown = []
    for words in example_commands(path):
        command, arguments = find_command(words)
        known = options(command)
        for word in arguments:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                unknown.append(f"{shlex.join(words)}: {option}")
    assert unknown == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_reference(name: str) -> None:
    text = (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    missing = [
        f"{' '.join(words)} {option}"
        for words, command in all_commands((name,), COMMANDS[name])
        for option in options(command) - {"--help", "--version"}
        if not re.search(rf"{re.escape(option)}\b", text)
    ]
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_or_is_the_page(name: str) -> None:
    found = anchors(ROOT / "docs" / "reference" / f"{name}.md")
    missing = [words for words, _ in all_commands((name,), COMMANDS[name]) if "-".join(words) not in found]
    assert missing == []


@cache
def tokens(path: Path) -> list[Token]:
    """A page, parsed as GitHub parses it."""
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def links(path: Path) -> Iterator[str]:
    """The targets of links and images that are part of this project."""
    for block in tokens(path):
        for token in block.children or ():
            target = str(token.attrs.get("href") or token.attrs.get("src") or "")
            if target and not re.match(r"[a-z]+:", target):
                yield target


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a page's headings, by GitHub's rule: lower case, no punctuation, dashes for spaces."""
    parsed = tokens(path) if path.suffix == ".md" else []
    titles = [parsed[n + 1].content for n, token in enumerate(parsed) if token.type == "heading_open"]
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    repeated = {slug for slug in slugs if slugs.count(slug) > 1}
    assert not repeated, f"{path}: headings whose anchors are the same: {repeated}"
    return frozenset(slugs)


def example_commands(path: Path) -> Iterator[list[str]]:
    """The words of each command of ours in a console block, and in the synopses, which are indented."""
    for token in tokens(path):
        if token.type == "fence" and token.info == "console":
            lines = token.content.replace("\\\n", " ").splitlines()
            for line in lines:
                if line.startswith("$ "):
                    yield from ours(shlex.split(line[2:], comments=True))
        elif token.type == "code_block":
            # A synopsis goes on in lines that are indented further.
            for line in re.sub(r"\n +", " ", token.content).splitlines():
                yield from ours(re.sub(r"[\[\]|]", " ", line).split())


def ours(words: list[str]) -> Iterator[list[str]]:
    """The commands of this project among those of a shell line."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word not in SHELL_OPERATORS:
            commands[-1].append(word.removesuffix(";"))
        if word in SHELL_OPERATORS or word.endswith(";"):
            commands.append([])
    return (command for command in commands if command and command[0] in COMMANDS)


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that the words name, and what follows it."""
    command: click.Command = COMMANDS[words[0]]
    arguments = words[1:]
    if isinstance(command, click.Group):
        assert arguments, f"{words}: no command"
        assert arguments[0] in command.commands, f"{words}: no such command"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


def all_commands(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that can be run, with the words that name it."""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from all_commands((*words, name), one)
    else:
        yield words, command


def options(command: click.Command) -> set[str]:
    """The long options of a command."""
    with click.Context(command) as context:
        return {
            name
            for parameter in command.get_params(context)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        }
