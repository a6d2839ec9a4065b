"""mquant end to end: what llama-quantize writes from llama.cpp's own conversion, and the promises around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers.gguf import read_gguf
from mconv.quantize.cli import cli
from mconv.quantize.filetypes import FileType

from support.command_line import Command
from support.gguf_compare import assert_same_tensors, data, listing
from support.gguf_parts import write_parts
from support.golden import Golden, describe_gguf
from support.legacy_imatrix import write_legacy_imatrix
from support.llama_quantize import Options
from support.llama_quantize import quantize as llama_quantize

FOUR = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")


Quantize = Callable[..., Any]
Converted = Callable[[Path, str], Path]


def types(*names: str) -> list[str]:
    return [word for name in names for word in ("--type", name)]


@pytest.fixture
def quantize(command: Command, tmp_path: Path) -> Quantize:
    """Quantize with our command line; returns the JSON."""

    def run(source: Path, *options: object) -> Any:
        result = command(cli, source, "--output-dir", tmp_path / "ours", "--overwrite", "--json", *options)
        assert result.code == 0, result.err
        return result.json

    return run


@pytest.fixture
def converted(command: Command, tmp_path: Path) -> Converted:
    """An unquantized GGUF file at the source's precision (its own tests hold it against llama.cpp's)."""

    def run(checkpoint: Path, outtype: str) -> Path:
        path = tmp_path / f"{checkpoint.name}-{outtype}.gguf"
        if not path.exists():
            assert command(mconv, "hf-to-gguf", checkpoint, path, "--outtype", outtype).code == 0
        return path

    return run


def by_llama_quantize(source: Path, kind: str, options: Options, folder: Path) -> list[str]:
    """The tensors of the file that llama-quantize writes."""
    llama_quantize(source, folder / "theirs.gguf", FileType[kind], options)
    return describe_gguf(folder / "theirs.gguf")["tensors"]


def test_a_split_model_is_read_as_one(dense: Path, quantize: Quantize, converted: Converted, tmp_path: Path) -> None:
    whole = converted(dense, "bf16")
    first = write_parts(whole, tmp_path / "parts", 8)
    from_parts = quantize(first, "--type", "Q4_K_M")["files"][0]
    assert Path(from_parts["path"]).name == "model-Q4_K_M.gguf"
    from_whole = quantize(whole, "--type", "Q4_K_M")["files"][0]
    assert Path(from_parts["path"]).read_bytes() == Path(from_whole["path"]).read_bytes()


@pytest.mark.parametrize(
    ("name", "outtype"),
    [("dense", "bf16"), ("tied", "f32"), ("experts", "bf16"), ("odd", "bf16"), ("mistral3", "bf16")],
)
def test_four_types_from_hugging_face_equal_llama_quantize(
    name: str,
    outtype: str,
    quantize: Quantize,
    converted: Converted,
    golden: Golden,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    checkpoint = request.getfixturevalue(name)
    for file in quantize(checkpoint, *types(*FOUR))["files"]:

        def theirs(kind: str = file["type"]) -> list[str]:
            return by_llama_quantize(converted(checkpoint, outtype), kind, Options(), tmp_path)

        expected = golden(theirs, checkpoint, part=file["type"])
        assert describe_gguf(Path(file["path"]))["tensors"] == expected
        assert Path(file["path"]).stat().st_size == file["bytes"]


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_an_importance_matrix_equals_llama_quantize(
    name: str,
    quantize: Quantize,
    converted: Converted,
    golden: Golden,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    checkpoint = request.getfixturevalue(name)
    source = converted(checkpoint, "bf16")
    random = np.random.default_rng(1)
    matrix = {}
    for tensor in read_gguf(source).tensors:
        if len(tensor.shape) > 1 and "blk" in tensor.name and "gate_inp" not in tensor.name:
            experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
            matrix[tensor.name] = random.lognormal(sigma=2, size=experts * tensor.shape[-1]).astype(np.float32)
    matrix_file = write_legacy_imatrix(tmp_path / "imatrix.dat", matrix)
    for file in quantize(source, "--imatrix", matrix_file, *types("Q4_K_M", "IQ4_XS", "IQ3_XXS"))["files"]:

        def theirs(kind: str = file["type"]) -> list[str]:
            return by_llama_quantize(source, kind, Options(imatrix=matrix), tmp_path)

        expected = golden(theirs, checkpoint, matrix_file, part=file["type"])
        assert describe_gguf(Path(file["path"]))["tensors"] == expected
        assert set(file["missing_imatrix"]) <= {"token_embd.weight", "output.weight"}
        told = read_gguf(Path(file["path"])).metadata
        assert told["quantize.imatrix.file"].content == "imatrix.dat"
        assert told["quantize.imatrix.entries_count"].content == len(matrix)


def test_a_gguf_source_gives_the_tensors_of_the_folder(
    dense: Path, quantize: Quantize, converted: Converted, tmp_path: Path
) -> None:
    (from_folder,) = quantize(dense, *types("Q5_K_M"))["files"]
    (from_file,) = quantize(converted(dense, "bf16"), *types("Q5_K_M"), "--output-dir", tmp_path / "again")["files"]
    assert_same_tensors(Path(from_folder["path"]), Path(from_file["path"]))
    assert Path(from_file["path"]).name == "dense-Q5_K_M.gguf"


def test_threads_do_not_change_a_byte(dense: Path, quantize: Quantize, tmp_path: Path) -> None:
    one = quantize(dense, *types("Q4_K_M", "Q6_K"), "--threads", 1, "--output-dir", tmp_path / "one")["files"]
    five = quantize(dense, *types("Q4_K_M", "Q6_K"), "--threads", 5, "--output-dir", tmp_path / "five")["files"]
    for a, b in zip(one, five, strict=True):
        assert Path(a["path"]).read_bytes() == Path(b["path"]).read_bytes()


def test_several_types_at_once_are_what_each_is_alone(dense: Path, quantize: Quantize, tmp_path: Path) -> None:
    for file in quantize(dense, *types("Q4_K_M", "Q3_K_M", "F16"))["files"]:
        (alone,) = quantize(dense, *types(file["type"]), "--output-dir", tmp_path / "alone")["files"]
        assert Path(alone["path"]).read_bytes() == Path(file["path"]).read_bytes()


def test_an_override_changes_the_tensors_it_names_and_no_other(dense: Path, quantize: Quantize, tmp_path: Path) -> None:
    (plain,) = quantize(dense, *types("Q4_K_M"))["files"]
    before = {name: kind for name, kind, _ in listing(read_gguf(Path(plain["path"])))}
    options = ("--tensor-type", r"blk\.0\.(attn_v|ffn_down)=q8_0", "--output-dir", tmp_path / "overridden")
    (changed,) = quantize(dense, *types("Q4_K_M"), *options)["files"]
    after = {name: kind for name, kind, _ in listing(read_gguf(Path(changed["path"])))}
    named = {"blk.0.attn_v.weight", "blk.0.ffn_down.weight"}
    assert {name for name in before if before[name] != after[name]} == named
    assert {after[name] for name in named} == {"Q8_0"}


def test_the_dry_run_tells_types_and_sizes_to_the_byte(
    odd: Path, quantize: Quantize, command: Command, tmp_path: Path
) -> None:
    planned = command(cli, odd, *types(*FOUR), "--output-dir", tmp_path / "ours", "--dry-run", "--json").json
    assert list(planned) == ["schema_version", "files"]
    assert not (tmp_path / "ours").exists()
    written = quantize(odd, *types(*FOUR))
    for plan, file in zip(planned["files"], written["files"], strict=True):
        described = plan.pop("plan")
        assert plan == file
        path = Path(file["path"])
        assert file["bytes"] == path.stat().st_size
        assert [(row["name"], row["type"]) for row in described] == [row[:2] for row in listing(read_gguf(path))]
        assert [row["bytes"] for row in described] == [len(data(tensor)) for tensor in read_gguf(path).tensors]
        assert file["fallbacks"]
        assert all(fallback["wanted"] != fallback["type"] for fallback in file["fallbacks"])


def test_the_table_names_each_file_and_its_fallbacks(odd: Path, command: Command, tmp_path: Path) -> None:
    result = command(cli, odd, *types("Q4_K_M"), "--output-dir", tmp_path)
    assert re.search(r"odd-Q4_K_M\.gguf +Q4_K_M", result.out)
    assert "do not fit their type" in result.err
    assert "Q5_0 instead of Q4_K" in result.err
