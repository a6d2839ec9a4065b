"""`mconv inspect`: the same facts of the same model, whatever the layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from mconv.convert.cli.main import cli

from support import checkpoints
from support.command_line import Command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of one layer."""
    return checkpoints.mixtral(tmp_path_factory.mktemp("inspect") / "small", num_hidden_layers=1)


def test_a_folder_and_its_gguf_file_are_the_same_model(model: Path, tmp_path: Path, command: Command) -> None:
    assert command(cli, "hf-to-gguf", model, tmp_path / "small.gguf").code == 0
    folder = command(cli, "inspect", model, "--json").json
    file = command(cli, "inspect", tmp_path / "small.gguf", "--json").json
    assert (folder["layout"], file["layout"]) == ("hf", "gguf")
    for key in ("schema_version", "family", "name", "size_label", "parameters", "tensors", "shape", "rope"):
        assert folder[key] == file[key]
    assert folder["family"] == "mixtral"
    assert folder["parameters"] == 4524800
    assert folder["types"] == {"BF16": 34}
    assert file["types"] == {"BF16": 30, "F32": 4}
    assert folder["bytes"] == 2 * folder["parameters"]
    assert file["vocabulary"] == {**folder["vocabulary"], "source": "small.gguf"}
    assert file["vocabulary"]["tokens"] == 2048
    assert file["vocabulary"]["special"]["bos"] == "1 '<s>'"


def test_a_folder_and_its_megatron_checkpoint_are_the_same_model(model: Path, tmp_path: Path, command: Command) -> None:
    assert command(cli, "hf-to-megatron", model, tmp_path / "small").code == 0
    folder = command(cli, "inspect", model, "--json").json
    megatron = command(cli, "inspect", tmp_path / "small", "--json").json
    assert megatron == {**folder, "layout": "megatron"}
    refused = command(cli, "inspect", model, "--hf-config", model)
    assert (refused.code, "--hf-config does not apply to reading a Hugging Face folder" in refused.err) == (2, True)


def test_the_table_has_a_row_for_each_fact(model: Path, command: Command) -> None:
    result = command(cli, "inspect", model)
    assert result.code == 0
    rows = dict(line.split(None, 1) for line in result.out.splitlines())
    assert rows["layout"] == "hf"
    assert rows["shape.experts"] == "8"
    assert rows["types.BF16"] == "34"


@pytest.mark.parametrize(("name", "content"), [("none", None), ("text.gguf", b"hello"), ("cut.gguf", b"GGUF\3\0\0\0")])
def test_what_is_no_checkpoint_is_refused_in_one_line(
    name: str, content: bytes | None, tmp_path: Path, command: Command
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = command(cli, "inspect", tmp_path / name)
    assert result.code == 3
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]
