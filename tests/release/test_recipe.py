"""Recipes: strict, with every mistake named; and the ones that `mrelease init` writes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.release.cli import cli
from mconv.release.recipe import Recipe, load_recipe, portable_text
from mconv.release.recipe_draft import _toml

from support.command_line import Command
from support.releases import MODEL, TEXT, write_recipe


@pytest.mark.parametrize(
    ("members", "what", "hint"),
    [
        ({"typs": ["Q6_K"], "types": None}, "typs is unknown", "the nearest member is types"),
        ({"license": "mit"}, "license is unknown", "licence"),
        ({"types": None}, "types is missing", "docs/reference/mrelease.md"),
        ({"types": []}, "types is []", "docs/reference/mrelease.md"),
        ({"types": ["Q4_K_X"]}, "unknown file type 'Q4_K_X'", "Q4_K_M"),
        ({"types": ["Q6_K", "q6_k"]}, "listed twice", "once"),
        ({"types": "Q6_K"}, "types is 'Q6_K'", "docs/reference/mrelease.md"),
        ({"schema_version": 2}, "schema_version is 2", "docs/reference/mrelease.md"),
        ({"ctx": "512"}, "ctx is '512'", "docs/reference/mrelease.md"),
        ({"ctx": 7}, "ctx is 7", "docs/reference/mrelease.md"),
        ({"ctx": True}, "ctx is True", "docs/reference/mrelease.md"),
        ({"private": 1}, "private is 1", "docs/reference/mrelease.md"),
        ({"name": "../x"}, "name is '../x'", "docs/reference/mrelease.md"),
        ({"repository": "name"}, "repository is 'name'", "Where it is published"),
        ({"repository": "rosa/a--b"}, "repository is 'rosa/a--b'", "docs/reference/mrelease.md"),
        ({"tag": "v 1"}, "tag is 'v 1'", "Name of the published commit"),
        ({"languages": ["any language"]}, "languages.0 is 'any language'", "Codes of languages"),
        ({"source": "~nobody-here/x"}, "source is '~nobody-here/x'", "What is quantized"),
        ({"texts": ["~nobody-here/x"]}, "texts.0 is '~nobody-here/x'", "Texts to measure"),
        ({"split_above": 45}, "split_above is 45", "docs/reference/mrelease.md"),
        ({"split_above": "much"}, "'much' is not a valid size", "5GB"),
        ({"extras": ["docker"]}, "extras.0 is 'docker'", "docs/reference/mrelease.md"),
        ({"recommended": "Q6_K"}, "recommended: Q6_K", "Q8_0"),
        ({"texts": ["a/x.txt", "b/x.txt"]}, "two texts have the same file name", "rename"),
        ({"licence": "other"}, "licence_name", "licence_link"),
        ({"licence": "Apache 2"}, "licence is 'Apache 2'", "docs/reference/mrelease.md"),
        ({"prompts": [1]}, "prompts.0 is 1", "docs/reference/mrelease.md"),
    ],
)
def test_a_mistake_is_named(command: Command, tmp_path: Path, members: dict[str, Any], what: str, hint: str) -> None:
    ended = command(cli, "plan", write_recipe(tmp_path / "r.toml", **members))
    assert ended.code == 2
    first, second = ended.err.splitlines()
    assert first.startswith("error: r.toml: ") and what in first
    assert second.startswith("hint: ") and hint in second


def test_an_unknown_member_of_a_table_is_named(command: Command, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    recipe.write_text(recipe.read_text() + '[sign]\nprivat_key = "key.pem"\n')
    ended = command(cli, "plan", recipe)
    assert (ended.code, ended.out) == (2, "")
    assert "sign.privat_key is unknown" in ended.err
    assert "the nearest member is sign.private_key" in ended.err


@pytest.mark.parametrize("text", ["types = [", "\x00", b"\xff".decode("latin-1")])
def test_what_is_not_toml_is_refused(command: Command, tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="latin-1")
    ended = command(cli, "plan", path)
    assert (ended.code, ended.err.count("\n")) == (2, 2)
    assert "r.toml is not TOML" in ended.err


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"x = {'[' * 3000}", "values are nested more than 16 levels deep"),
        (f"{'.'.join('a' * 3000)} = 1", "values are nested more than 16 levels deep"),
        ("x = '" + "a" * (1 << 20) + "'", "1048582 bytes are too many, 1048576 are the most"),
    ],
    ids=["lists", "a dotted key", "length"],
)
def test_recipes_and_gates_have_bounded_depth_and_length(
    command: Command, tmp_path: Path, text: str, what: str
) -> None:
    (tmp_path / "r.toml").write_text(text)
    ended = command(cli, "plan", tmp_path / "r.toml")
    assert (ended.code, ended.err.splitlines()) == (
        3,
        [f"error: r.toml: {what}", "hint: write a first recipe with mrelease init"],
    )
    (tmp_path / "g.toml").write_text(text)
    ended = command(cli, "plan", write_recipe(tmp_path / "r.toml", gates="g.toml"))
    assert (ended.code, ended.err.splitlines()) == (
        3,
        [f"error: g.toml: {what}", "hint: see the gates in docs/reference/mval.md"],
    )


def test_a_number_of_too_many_digits_is_not_toml(command: Command, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f"ctx = {'1' * 5000}")
    ended = command(cli, "plan", tmp_path / "r.toml")
    assert (ended.code, ended.err.count("\n")) == (2, 2)
    assert "r.toml is not TOML: Exceeds the limit" in ended.err


@pytest.mark.parametrize("step", ["plan", "build", "check", "publish"])
def test_a_recipe_that_is_a_pipe_is_not_waited_for(command: Command, tmp_path: Path, step: str) -> None:
    os.mkfifo(tmp_path / "r.toml")
    ended = command(cli, step, tmp_path / "r.toml")
    assert (ended.code, ended.err.splitlines()[0]) == (3, f"error: {tmp_path / 'r.toml'} is not a regular file")


@pytest.mark.parametrize("member", ["gates", "imatrix", "licence_file", "texts"])
def test_what_a_recipe_names_is_not_a_pipe(command: Command, tmp_path: Path, member: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    value = ["pipe"] if member == "texts" else "pipe"
    ended = command(cli, "plan", write_recipe(tmp_path / "r.toml", **{member: value}))
    assert (ended.code, ended.err.splitlines()[0]) == (3, f"error: {member}: {tmp_path / 'pipe'} is not a file")


def test_a_folder_that_is_a_link_to_itself_is_named(command: Command, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    (tmp_path / "loop").symlink_to("loop")
    for step in (("plan",), ("build", "--dry-run"), ("build",), ("check",), ("run",)):
        ended = command(cli, *step, recipe, "--folder", tmp_path / "loop")
        assert (ended.code, ended.err.splitlines()) == (
            4,
            [f"error: {tmp_path / 'loop'} is not a folder", "hint: choose another --folder"],
        )
        ended = command(cli, *step, recipe, "--folder", tmp_path / "loop/below")
        assert (ended.code, ended.err.splitlines()[0]) == (
            4,
            f"error: {tmp_path / 'loop/below'}: a loop of symbolic links",
        )


def test_a_recipe_that_is_not_there(command: Command, tmp_path: Path) -> None:
    ended = command(cli, "plan", tmp_path / "r.toml")
    assert ended.code == 4
    assert "r.toml" in ended.err


@pytest.mark.parametrize(
    ("members", "code", "what"),
    [
        ({"texts": [str(MODEL)]}, 3, f"texts: {MODEL} is not a file"),
        ({"gates": "none.toml"}, 3, "none.toml is not a file"),
        ({"imatrix": "none.gguf"}, 3, "none.gguf is not a file"),
        ({"licence_file": "none"}, 3, "none is not a file"),
        ({"hf_config": "none"}, 3, "none is not a folder"),
        ({"gates": "gates.toml"}, 2, "'kl_men' is unknown"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_built(
    command: Command, tmp_path: Path, members: dict[str, Any], code: int, what: str
) -> None:
    (tmp_path / "gates.toml").write_text("[every]\nkl_men = 1\n")
    ended = command(cli, "build", write_recipe(tmp_path / "r.toml", **members))
    assert (ended.code, ended.err.count("\n")) == (code, 2)
    assert what in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gates.toml", "r.toml"]


def test_a_folder_is_not_a_recipe(command: Command, tmp_path: Path) -> None:
    ended = command(cli, "plan", tmp_path)
    assert (ended.code, "is a folder, not a recipe" in ended.err) == (2, True)


def test_paths_count_from_the_folder_of_the_recipe(tmp_path: Path) -> None:
    recipe, _ = load_recipe(write_recipe(tmp_path / "r.toml", texts=["a/t.txt", "/b/u.txt"], gates="../g.toml"))
    assert recipe.texts == [tmp_path / "a/t.txt", Path("/b/u.txt")]
    assert recipe.gates == tmp_path / "../g.toml"
    assert recipe.split_above == 45 * 10**9
    assert recipe.recommended_type == "Q4_K_M"


def test_no_folder_of_ours_is_published(tmp_path: Path) -> None:
    written = write_recipe(
        tmp_path / "r.toml",
        source="/home/rosa/models/tiny",
        texts=["/home/rosa/t.txt", "u.txt"],
        prompts=["/home/x"],
        gates="../rosa/gates.toml",
        hf_config="..",
    )
    text = portable_text("# by hand\n" + written.read_text())
    assert "rosa/" not in text.replace("rosa/tiny-mistral-GGUF", "")
    content = tomllib.loads(text)
    assert (content["source"], content["texts"], content["prompts"]) == ("tiny", ["t.txt", "u.txt"], ["/home/x"])
    assert (content["gates"], content["hf_config"]) == ("gates.toml", "..")
    assert text.startswith("# by hand\n")


@pytest.mark.parametrize(
    ("source", "code", "what", "hint"),
    [
        ("no/such/folder/here", 3, "no such file or folder", "relative to the folder of the recipe"),
        ("rosa/model", 2, "not a commit on the Hub", "pin a commit: source = 'rosa/model@'"),
        ("rosa/model@main", 2, "not a commit on the Hub", "pin a commit"),
    ],
)
def test_a_source_is_there_or_pinned(
    command: Command, tmp_path: Path, source: str, code: int, what: str, hint: str
) -> None:
    ended = command(cli, "plan", write_recipe(tmp_path / "r.toml", source=source))
    assert ended.code == code
    assert what in ended.err and hint in ended.err


def test_init_writes_a_recipe_that_loads(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "deep/r.toml"
    path.parent.mkdir()
    assert command(cli, "init", MODEL, path, "--text", TEXT).code == 0
    text = path.read_text()
    recipe, _ = load_recipe(path)
    assert (recipe.name, recipe.licence, recipe.languages) == ("tiny-mistral", "apache-2.0", ["en"])
    assert recipe.texts[0].resolve() == TEXT
    assert (path.parent / recipe.source).resolve() == MODEL
    # Every member is there, with a comment above it.
    lines = text.splitlines()
    for name in Recipe.model_fields:
        (place,) = [number for number, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} = ")]
        assert lines[place - 1].startswith("# "), name
    # And each example is a value that its member may have.
    in_force = "\n".join(line[2:] if " = " in line and line[:2] == "# " else line for line in lines)
    Recipe.model_validate({**tomllib.loads(in_force), "recommended": "Q4_K_M"}, context={"folder": path.parent})
    # It says what to do where the source does not know.
    assert command(cli, "plan", path).code == 0


def test_init_without_texts_asks_for_them(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    drafted = command(cli, "init", MODEL, path)
    assert (drafted.code, "its texts are empty" in drafted.err) == (0, True)
    ended = command(cli, "plan", path)
    assert (ended.code, "texts is []" in ended.err) == (2, True)


def test_init_overwrites_nothing(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("mine")
    ended = command(cli, "init", MODEL, path)
    assert (ended.code, path.read_text()) == (4, "mine")
    assert "exists already" in ended.err


@settings(max_examples=50)
@given(
    st.recursive(
        st.text() | st.booleans() | st.integers(-(2**53), 2**53),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_values_come_back_from_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


def test_a_name_that_nobody_vouches_for_becomes_a_file_name(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in MODEL.iterdir():
        (source / file.name).symlink_to(file)
    (source / "README.md").unlink()
    (source / "README.md").write_text('---\nmodel_name: "a \\"b\\"|c`\\nd"\nlicense: "mit\\n# x"\n---\n')
    path = tmp_path / "r.toml"
    assert command(cli, "init", source, path, "--text", TEXT).code == 0
    content = tomllib.loads(path.read_text())
    assert content["name"] == "a-b-c-d"
    # A licence without a valid name is an error once it is used.
    assert content["licence"] == "mit\n# x"
    assert command(cli, "plan", path).code == 2
