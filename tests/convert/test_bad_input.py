"""Bad input through the command line: one line, one hint, the right exit code, nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mconv.convert.cli.main import cli as mconv
from mconv.quantize.cli import cli as mquant

from support import checkpoints
from support.command_line import Command, Result

INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_config(**members: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(members))


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors of a checkpoint and store them in one file."""

    def damage(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted(folder.glob("model-*.safetensors")):
            tensors |= load_file(shard)
            shard.unlink()
        (folder / INDEX).unlink()
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return damage


def edit_header(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = first_shard(folder)
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def edit_index(change: Callable[[dict], object]) -> Damage:
    return lambda folder: edit_json(folder / INDEX, lambda index: change(index["weight_map"]))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def truncate(folder: Path) -> None:
    path = first_shard(folder)
    os.truncate(path, path.stat().st_size - 1000)


def poison(value: float) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][301, 17] = value

    return edit_tensors(change)


def replace_by_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def pickle_alone(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.2.self_attn.q_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "unknown architecture": (edit_config(architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
    "no architecture": (edit_config(architectures=[]), "architectures"),
    "no hidden size": (edit_config(hidden_size=None), "hidden_size"),
    "a layer count that is text": (edit_config(num_hidden_layers="8"), "num_hidden_layers"),
    "heads that do not divide": (edit_config(num_key_value_heads=3), "key-value heads"),
    "another activation": (edit_config(hidden_act="gelu"), "gelu"),
    "unknown rope scaling": (edit_config(rope_parameters={"rope_theta": 1e4, "rope_type": "longrope"}), "longrope"),
    "quantized weights": (edit_config(quantization_config={"quant_method": "gptq"}), "gptq"),
    "a wrong shape": (edit_config(intermediate_size=511), "[512, 256]"),
    "too few layers configured": (edit_config(num_hidden_layers=7), "model.layers.7"),
    "a missing shard": (lambda folder: first_shard(folder).unlink(), "model-00001-of-"),
    "a truncated shard": (truncate, "truncated"),
    "a shard that is no safetensors": (lambda folder: first_shard(folder).write_bytes(b"\xff" * 64), "header claims"),
    "an empty shard": (lambda folder: first_shard(folder).write_bytes(b""), "safetensors"),
    "a header that is no JSON": (
        lambda folder: first_shard(folder).write_bytes(struct.pack("<Q", 9) + b"not JSON!"),
        "JSON",
    ),
    "an index that points outside": (
        edit_index(lambda names: names.update({NORM: "../../etc/passwd"})),
        "outside the folder",
    ),
    "an index that is absolute": (edit_index(lambda names: names.update({NORM: "/etc/passwd"})), "outside the folder"),
    "an index with one tensor more": (edit_index(lambda names: names.update({"extra": min(names.values())})), "extra"),
    "an index with one tensor less": (edit_index(lambda names: names.pop(NORM)), NORM),
    "an index without a map": (lambda folder: (folder / INDEX).write_text("{}"), "weight_map"),
    "offsets beyond the file": (
        edit_header(lambda h: h[next(iter(k for k in h if k[0] != "_"))].update(data_offsets=[0, 1 << 60])),
        "truncated",
    ),
    "negative offsets": (
        edit_header(lambda h: h[next(iter(k for k in h if k[0] != "_"))].update(data_offsets=[-8, 0])),
        "negative",
    ),
    "a shape that is not its bytes": (
        edit_header(lambda h: h[next(iter(k for k in h if k[0] != "_"))].update(shape=[1 << 40])),
        "bytes",
    ),
    "a missing tensor": (edit_tensors(lambda tensors: tensors.pop(NORM)), NORM),
    "an extra tensor": (
        edit_tensors(lambda tensors: tensors.update({"model.layers.1.input_layernorm.wieght": torch.ones(4)})),
        NORM,
    ),
    "a tensor of integers": (
        edit_tensors(lambda tensors: tensors.update({NORM: torch.ones(256, dtype=torch.int8)})),
        "I8",
    ),
    "NaN": (poison(float("nan")), f"tensor {UP} (blk.2.ffn_up.weight), row 301, column 17 is nan"),
    "infinity": (poison(float("-inf")), "row 301, column 17 is -inf"),
    "NaN in rows that move": (
        edit_tensors(lambda tensors: tensors[QUERY][77].fill_(torch.nan)),
        f"{QUERY} (blk.2.attn_q.weight), row 77",
    ),
    "a huge vocabulary": (edit_config(vocab_size=1 << 30), "[1073741824, 256]"),
    "more layers than llama.cpp has": (edit_config(num_hidden_layers=10**12), "num_hidden_layers"),
    "a number beyond any float": (edit_config(rms_norm_eps=10**400), "rms_norm_eps"),
    "an infinite theta": (edit_config(rope_parameters={"rope_theta": float("inf")}), "rope_theta"),
    "a sliding window that is text": (edit_config(sliding_window="4096"), "sliding_window"),
    "a flag that is text": (edit_config(tie_word_embeddings="false"), "tie_word_embeddings"),
    "a name that is no text": (edit_config(_name_or_path="\ud800"), "general.name"),
    "an integer of 5000 digits": (
        lambda folder: (folder / "config.json").write_text('{"a": ' + "1" * 5000 + "}"),
        "config.json",
    ),
    "a type that is a list": (
        edit_header(lambda h: h[next(iter(k for k in h if k[0] != "_"))].update(dtype=["BF16"])),
        "['BF16']",
    ),
    "a configuration that is a pipe": (replace_by_pipe, "is not a regular file"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer"),
    "a tokenizer that is none": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"\x00" * 100),
        "tokenizer.model",
    ),
    "pickled weights only": (
        pickle_alone,
        "model*.safetensors",
    ),
}


@pytest.fixture
def copy(dense: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(dense, tmp_path / "source"))


def assert_refused(result: Result, code: int, told: str) -> None:
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if not line.startswith("note:")]
    assert re.match(r"error: .", lines[0]), result.err
    assert re.match(r"hint: .", lines[1]), result.err
    assert len(lines) == 2, result.err
    assert told in lines[0]
    assert result.out == ""


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(name: str, copy: Path, tmp_path: Path, command: Command) -> None:
    damage, told = DAMAGES[name]
    damage(copy)
    (tmp_path / "out").mkdir()
    assert_refused(command(mconv, "hf-to-gguf", copy, tmp_path / "out/a.gguf"), 3, told)
    assert_refused(command(mquant, copy, "--type", "Q8_0", "--output-dir", tmp_path / "out"), 3, told)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_weight_beyond_float16_is_refused(copy: Path, tmp_path: Path, command: Command) -> None:
    poison(1e30)(copy)
    result = command(mconv, "hf-to-gguf", copy, tmp_path / "a.gguf", "--outtype", "f16")
    assert_refused(result, 3, f"{UP} (blk.2.ffn_up.weight), row 301, column 17 is too large for F16")
    for name in ("Q4_0", "Q4_K_M", "IQ4_XS"):
        result = command(mquant, copy, "--type", name, "--output", tmp_path / "a.gguf")
        assert_refused(result, 3, f"{UP} (blk.2.ffn_up.weight), row 301, column 17 is too large for")
    assert not (tmp_path / "a.gguf").exists()


def test_an_output_that_exists_is_kept(dense: Path, tmp_path: Path, command: Command) -> None:
    output = tmp_path / "a.gguf"
    output.write_text("mine")
    assert_refused(command(mconv, "hf-to-gguf", dense, output), 4, "exists already")
    assert output.read_text() == "mine"
    assert command(mconv, "hf-to-gguf", dense, output, "--overwrite").code == 0
    assert output.stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("hf-to-gguf", "{missing}", "{out}"), 3, "no such folder"),
        (("hf-to-gguf", "{dense}", "{missing}/a.gguf"), 4, "no such folder"),
        (("hf-to-gguf", "{dense}", "{folder}"), 4, "is a folder"),
        (("hf-to-gguf", "{dense}", "{out}", "--outtype", "q4_k"), 2, "q4_k"),
        (("hf-to-gguf", "{dense}"), 2, "OUT.gguf"),
        (("hf-to-guf",), 2, "hf-to-guf"),
    ],
)
def test_mconv_refuses_wrong_arguments(
    arguments: list[Any], code: int, told: str, dense: Path, tmp_path: Path, command: Command
) -> None:
    names = {"dense": dense, "missing": tmp_path / "nothing", "out": tmp_path / "a.gguf", "folder": tmp_path}
    result = command(mconv, *(argument.format(**names) for argument in arguments))
    assert_refused(result, code, told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--type", "Q4_K_X"), 2, "Q4_K_X"),
        (("--type", "Q4_K_M", "--type", "Q6_K", "--output", "a.gguf"), 2, "--output"),
        (("--type", "Q4_K_M", "--tensor-type", "attn_w=q8_0"), 2, "attn_w"),
        (("--type", "Q4_K_M", "--tensor-type", "attn_v=q77"), 2, "q77"),
        (("--type", "Q4_K_M", "--tensor-type", "attn_v("), 2, "attn_v("),
        (("--type", "Q4_K_M", "--imatrix", "nothing.gguf"), 4, "nothing.gguf"),
        (("--type", "IQ2_XXS"), 3, "importance"),
        ((), 2, "--type"),
    ],
)
def test_mquant_refuses_wrong_arguments(
    arguments: list[Any],
    code: int,
    told: str,
    dense: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command(mquant, dense, *arguments), code, told)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_source_needs_leave(dense: Path, tmp_path: Path, command: Command) -> None:
    assert command(mquant, dense, "--type", "Q8_0", "--output", tmp_path / "q8.gguf").code == 0
    arguments = (tmp_path / "q8.gguf", "--type", "Q4_0", "--output", tmp_path / "q4.gguf")
    assert_refused(command(mquant, *arguments), 3, "already Q8_0")
    assert command(mquant, *arguments, "--allow-requantize").code == 0


def test_a_file_beside_what_is_read_can_be_written_again(copy: Path, command: Command) -> None:
    output = copy / "model.gguf"
    output.with_name("model.gguf.partial").write_bytes(b"left by a run that was killed")
    for _ in range(2):
        assert command(mconv, "hf-to-gguf", copy, output, "--overwrite").code == 0


@pytest.mark.parametrize("name", ["hf-to-gguf", "hf-to-megatron"])
@pytest.mark.parametrize("output", [".", "", "/"])
def test_an_output_without_a_name_is_refused(
    output: str, name: str, dense: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    result = command(mconv, name, dense, output)
    assert result.code in (2, 4)
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_read_is_never_overwritten(copy: Path, tmp_path: Path, command: Command) -> None:
    weights = first_shard(copy)
    before = weights.read_bytes()
    assert_refused(command(mconv, "hf-to-gguf", copy, weights, "--overwrite"), 2, "would overwrite an input file")
    assert weights.read_bytes() == before
    growing = tmp_path / "a.gguf.partial"
    assert command(mquant, copy, "--type", "F16", "--output", growing).code == 0
    before = growing.read_bytes()
    for output in (growing, tmp_path / "a.gguf"):
        result = command(mquant, growing, "--type", "Q8_0", "--output", output, "--overwrite")
        assert_refused(result, 2, "would overwrite an input file")
        assert growing.read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_stands_where_the_file_grows_is_left_alone(
    kind: str, dense: Path, tmp_path: Path, command: Command
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    partial = tmp_path / "a.gguf.partial"
    {"link": lambda: partial.symlink_to(precious), "pipe": lambda: os.mkfifo(partial), "folder": partial.mkdir}[kind]()
    assert_refused(command(mconv, "hf-to-gguf", dense, tmp_path / "a.gguf"), 4, "in the way")
    assert precious.read_text() == "mine"
    assert partial.is_symlink() or partial.is_fifo() or partial.is_dir()


def test_an_interrupt_between_two_steps_leaves_nothing(
    dense: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("mconv.convert.engine.outputs.lock", interrupt)
    assert command(mconv, "hf-to-gguf", dense, tmp_path / "a.gguf").code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_no_output(dense: Path, command: Command) -> None:
    assert_refused(command(mconv, "hf-to-gguf", dense, "/dev/null", "--overwrite"), 4, "is not a regular file")


@pytest.mark.parametrize(
    ("step", "place"), [("hf-to-gguf", "loop"), ("hf-to-gguf", "loop/a.gguf"), ("hf-to-megatron", "loop/a")]
)
def test_an_output_behind_a_link_to_itself_is_named(
    dense: Path, tmp_path: Path, command: Command, step: str, place: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert_refused(command(mconv, step, dense, tmp_path / place), 4, f"{tmp_path / place}: a loop of symbolic links")


def test_a_second_run_with_the_same_output_is_refused(dense: Path, tmp_path: Path, command: Command) -> None:
    with (tmp_path / "a.gguf.partial").open("wb") as other:
        other.write(b"half a model")
        fcntl.flock(other, fcntl.LOCK_EX)
        assert_refused(command(mconv, "hf-to-gguf", dense, tmp_path / "a.gguf"), 4, "another run")
    assert (tmp_path / "a.gguf.partial").read_bytes() == b"half a model"
    # Left behind by a run that was killed, it is no hindrance.
    assert command(mconv, "hf-to-gguf", dense, tmp_path / "a.gguf").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    "card",
    ["---" + " \n" * 100_000, "---\ndate: 2024-13-45\nlicense: mit\n---\n", "---\n" + "[" * 5000 + "\n---\n", "\0\0"],
    ids=["endless", "a date that is none", "deep", "binary"],
)
def test_a_strange_card_does_no_harm(card: str, copy: Path, tmp_path: Path, command: Command) -> None:
    (copy / "README.md").write_text(card)
    assert command(mconv, "hf-to-gguf", copy, tmp_path / "a.gguf").code == 0


def test_a_reader_that_leaves_is_no_failed_gate(dense: Path) -> None:
    program = f"{sys.executable} -m mconv.quantize.cli {dense} --type Q8_0 --dry-run"
    result = subprocess.run(
        ["bash", "-c", f"{program} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert result.stdout.split() in (["130"], ["0"])
    assert "Traceback" not in result.stderr


def test_closed_streams_do_no_harm(dense: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} -m mconv.convert.cli.main hf-to-gguf {dense} {tmp_path}/a.gguf"
    assert subprocess.run(["bash", "-c", f"{program} >&- 2>&-"]).returncode == 0
    assert (tmp_path / "a.gguf").stat().st_size > 1_000_000


def test_no_room_is_said_before_anything_is_written(copy: Path, tmp_path: Path, command: Command) -> None:
    """A model of terabytes, as holes in a file: sizes are real, the bytes are not there."""
    length, hidden = 1 << 30, 256
    names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(8) for part in ("gate", "up", "down")]

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            tensors.pop(name)

    edit_tensors(grow)(copy)
    shapes = {name: [hidden, length] if "down" in name else [length, hidden] for name in names}
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * length * hidden]}
        for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    holes = copy / "model2.safetensors"
    holes.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        os.truncate(holes, 8 + len(text) + 2 * length * hidden)
    except OSError as error:
        pytest.skip(f"this file system has no files of a terabyte: {error}")
    edit_config(intermediate_size=length)(copy)
    (tmp_path / "out").mkdir()
    assert_refused(command(mconv, "hf-to-gguf", copy, tmp_path / "out/a.gguf"), 4, "not enough space in")
    result = command(mquant, copy, "--type", "Q4_K_M", "--type", "Q6_K", "--output-dir", tmp_path / "out")
    assert_refused(result, 4, "not enough space in")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fails_in_the_middle_leaves_nothing(dense: Path, tmp_path: Path) -> None:
    limit = 10_000_000
    result = subprocess.run(
        [sys.executable, "-m", "mconv.convert.cli.main", "hf-to-gguf", dense, tmp_path / "a.gguf"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 4, result.stderr
    assert result.stderr.splitlines()[-2] == f"error: {tmp_path}/a.gguf: File too large"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes a command long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("big") / "big"
    return checkpoints.mistral(folder, hidden_size=1024, intermediate_size=8192, num_hidden_layers=12)


@pytest.mark.parametrize(
    ("module", "number"),
    [("convert.cli.main", signal.SIGINT), ("quantize.cli", signal.SIGINT), ("quantize.cli", signal.SIGTERM)],
)
def test_an_interrupt_leaves_nothing(module: str, number: int, big: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = {
        "convert.cli.main": ["hf-to-gguf", big, out / "a.gguf", "--outtype", "q8_0"],
        "quantize.cli": [big, "--type", "IQ4_XS", "--type", "Q4_K_M", "--output-dir", out],
    }[module]
    program = [sys.executable, "-m", f"mconv.{module}", *map(str, arguments)]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("*.partial")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "interrupted"
    assert list(out.iterdir()) == []
