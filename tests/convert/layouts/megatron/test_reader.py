"""Megatron checkpoints as others store them, and as nobody should: every one opened, or refused in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from mconv.convert.cli.main import cli
from mconv.convert.containers.pickles import global_name, make_record, read_pickle, write_pickle
from mconv.convert.containers.torch_dist import read_index
from mconv.convert.errors import FormatError, MappingError, MconvError, SourceError
from mconv.convert.layouts.hf.reader import open_hf
from mconv.convert.layouts.megatron.reader import open_megatron
from mconv.convert.tensors.nodes import row_count

from support import checkpoints
from support.command_line import Command

# torch says twice a test that it works in a single process, as it was told to.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

LAYERS = 2
SMALL = {**checkpoints.SHAPE, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
SMALL["num_hidden_layers"] = LAYERS

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dense Mistral."""
    return checkpoints.mistral(tmp_path_factory.mktemp("small") / "model", **SMALL)


@pytest.fixture
def written(model: Path, tmp_path: Path, command: Command) -> Path:
    """The folder of its iteration, as ours writes it, without config.json and tokenizer."""
    result = command(cli, "hf-to-megatron", model, tmp_path / "megatron")
    assert result.code == 0, result.err
    (tmp_path / "megatron" / "release").rename(tmp_path / "iteration")
    shutil.rmtree(tmp_path / "megatron")
    return tmp_path / "iteration"


@pytest.fixture
def state(written: Path) -> State:
    """All of its tensors, read by torch."""
    reader = dcp.FileSystemReader(written)
    listed = reader.read_metadata().state_dict_metadata.items()
    tensors = {key: torch.empty(entry.size, dtype=torch.bfloat16) for key, entry in listed if hasattr(entry, "size")}
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save a state with torch."""

    def run(state: dict[str, Any], folder: str = "saved") -> Path:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / folder), no_dist=True)
        return tmp_path / folder

    return run


def assert_model(folder: Path, model: Path) -> tuple[str, ...]:
    """Require the tensors of the model; returns the notes."""
    opened, original = open_megatron(folder, model), open_hf(model)
    assert opened.tensors.keys() == original.tensors.keys()
    for name, tensor in original.tensors.items():
        rows = row_count(tensor.shape)
        assert opened.tensors[name].read(0, rows).tobytes() == tensor.read(0, rows).tobytes(), name
    return opened.notes


def unstacked(state: State) -> State:
    """Each layer under its own number."""
    return {
        name: value
        for key, tensor in state.items()
        for name, value in (
            [(key.replace(".layers.", f".layers.{layer}."), tensor[layer].clone()) for layer in range(LAYERS)]
            if ".layers." in key
            else [(key, tensor)]
        )
    }


def halved(state: State) -> State:
    """Gate and up apart."""
    name = "decoder.layers.mlp.linear_fc1.weight"
    gate, up = state[name].chunk(2, dim=1)
    rest = {key: tensor for key, tensor in state.items() if key != name}
    return {**rest, name + "_w": gate.contiguous(), name + "_v": up.contiguous()}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {key.replace(old, new): tensor for key, tensor in state.items()}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        unstacked,
        halved,
        lambda state: unstacked(halved(state)),
        prefixed("model."),
        prefixed("module."),
        prefixed("model.module.module."),
        renamed(".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
        renamed(".self_attention.linear_qkv.layer_norm_", ".input_layernorm."),
    ],
    ids=["layers apart", "gate and up apart", "both apart", "model", "module", "wrapped", "MLP norm", "input norm"],
)
def test_every_spelling_is_the_model(
    change: Callable[[State], State], state: State, model: Path, save: Callable[..., Path]
) -> None:
    assert_model(save(change(state)), model)


def test_training_state_and_padding_are_left_out_aloud(state: State, model: Path, save: Callable[..., Path]) -> None:
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        state[key] = torch.cat([state[key], torch.zeros(96, state[key].shape[1], dtype=torch.bfloat16)])
    state["optimizer.state.exp_avg.output_layer.weight"] = torch.zeros(8)
    state["chained_0.optimizer.state.fp32_param.decoder.final_layernorm.weight"] = torch.zeros(8)
    notes = assert_model(save(state), model)
    assert notes == (
        "left out 2 tensors: the state of the optimizer and of the run",
        "left out 96 rows that pad the vocabulary of 2048",
    )


def test_a_number_in_the_tracker_names_the_iteration(written: Path, model: Path) -> None:
    root = written.parent
    written.rename(root / "iter_0001200")
    (root / "latest_checkpointed_iteration.txt").write_text("1200\n")
    assert_model(root, model)
    (root / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(SourceError) as raised:
        open_megatron(root, model)
    assert str(root / "iter_0001200") in raised.value.hint


def test_settings_of_the_run_are_enough_beside_a_tokenizer(written: Path, model: Path) -> None:
    shutil.copy(model / "tokenizer.model", written)
    shutil.copy(model / "tokenizer_config.json", written)
    assert open_megatron(written).spec == open_hf(model).spec


def test_settings_may_be_an_object_among_the_tensors(
    written: Path, state: State, model: Path, save: Callable[..., Path]
) -> None:
    common = torch.load(written / "common.pt", weights_only=False)
    assert isinstance(common["args"], argparse.Namespace)
    saved = save(state)
    torch.save([common], saved / "__0_1.distcp")
    length = (saved / "__0_1.distcp").stat().st_size

    def add(index: Any) -> None:
        key = "common_state/shard_0_1"
        index.state_dict_metadata[key] = BytesStorageMetadata()
        index.storage_data[MetadataIndex(key)] = _StorageInfo("__0_1.distcp", 0, length)

    edit_index(add)(saved)
    shutil.copy(model / "tokenizer.model", saved)
    assert open_megatron(saved).spec == open_hf(model).spec


def test_what_the_checkpoint_does_not_say_is_named(state: State, save: Callable[..., Path], command: Command) -> None:
    result = command(cli, "megatron-to-gguf", save(state), "out.gguf")
    assert result.code == 3
    first, hint = result.err.splitlines()
    assert "num_attention_heads" in first
    assert "rope_theta" in first
    assert first.endswith("the tokenizer")
    assert "--hf-config" in hint


def test_biases_are_seen_in_the_weights(tmp_path: Path, command: Command) -> None:
    """No setting of a run tells those of the attention from those of the MLP."""
    source = checkpoints.llama(tmp_path / "biased", **SMALL, attention_bias=True)
    assert command(cli, "hf-to-megatron", source, tmp_path / "megatron").code == 0
    (tmp_path / "megatron" / "config.json").unlink()
    assert open_megatron(tmp_path / "megatron").spec == open_hf(source).spec
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "attention_bias": False}))
    with pytest.raises(MappingError, match="attention_bias False"):
        open_megatron(tmp_path / "megatron", source)


def test_a_quantized_model_that_a_run_began_from_makes_no_quantized_one(
    written: Path, model: Path, tmp_path: Path, command: Command
) -> None:
    config = json.loads((model / "config.json").read_text())
    begun_from = shutil.copytree(model, tmp_path / "fp8")
    (begun_from / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    assert command(cli, "megatron-to-hf", written, tmp_path / "out", "--hf-config", begun_from).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_a_configuration_may_have_any_name(written: Path, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    shutil.copy(other / "config.json", other / "mine.json")
    (other / "config.json").write_text("{}")
    opened = open_megatron(written, other / "mine.json")
    assert opened.sidecars()["config.json"] == (model / "config.json").read_bytes()


def test_a_configuration_of_another_model_is_refused(written: Path, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 12345.0
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MappingError, match="rope_theta"):
        open_megatron(written, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state.pop("decoder.layers.mlp.linear_fc2.weight"), "linear_fc2"),
        (lambda state: state.update({"decoder.layers.mlp.adapter.weight": torch.zeros(2, 4)}), "adapter"),
        (lambda state: state.update({"decoder.final_layernorm.weight": torch.zeros(64)}), "final_layernorm"),
    ],
    ids=["missing", "unknown", "of another shape"],
)
def test_coverage_is_an_error(
    change: Callable[[State], Any], word: str, state: State, model: Path, save: Callable[..., Path]
) -> None:
    change(state)
    with pytest.raises(MappingError, match=word):
        open_megatron(save(state), model)


class Attack:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def test_a_hostile_index_runs_nothing(written: Path, model: Path, tmp_path: Path, command: Command) -> None:
    (written / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Attack(tmp_path / "ran")}))
    result = command(cli, "megatron-to-gguf", written, tmp_path / "out.gguf", "--hf-config", model)
    assert result.code == 3
    assert "the pickle uses posix.system" in result.err
    assert not (tmp_path / "ran").exists()


def test_a_hostile_common_state_runs_nothing(written: Path, model: Path, tmp_path: Path) -> None:
    torch.save({"args": Attack(tmp_path / "ran")}, written / "common.pt")
    with pytest.raises(FormatError, match=r"common\.pt: the pickle uses posix\.system"):
        open_megatron(written, model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins\neval",
        "builtins\ngetattr",
        "torch\nload",
        "torch\nSize.__class__",
        "megatron.core\nos.system",
        "os\nsystem",
    ],
)
def test_names_outside_the_list_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="the pickle uses"):
        read_pickle(b"\x80\x02c" + name.encode() + b"\n.", "a pickle")


@pytest.mark.parametrize(
    "name",
    ["pathlib._local\nPosixPath", "torch.distributed._shard.sharded_tensor.metadata\nTensorProperties"],
    ids=["Python 3.13", "torch 2.2"],
)
def test_names_of_other_versions_are_taken(name: str) -> None:
    assert global_name(read_pickle(b"\x80\x02c" + name.encode() + b"\n.", "a pickle")) == name.replace("\n", " ")


def test_a_pickle_cannot_change_the_stand_ins() -> None:
    # BUILD with a pair sets attributes, here of the stand-in class itself.
    with pytest.raises(FormatError):
        read_pickle(b"\x80\x02cmegatron.core\nThing\n(N}X\x07\x00\x00\x00made_ofX\x01\x00\x00\x00xstb.", "a pickle")


def test_a_few_bytes_cannot_take_all_of_the_memory() -> None:
    """LONG_BINPUT with a number of half a billion."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_pickle(b"\x80\x02Nr\xff\xff\xff\x1f.", "a pickle") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_megatron_objects_are_inert() -> None:
    data = b"\x80\x02cmegatron.core.transformer.enums\nAttnBackend\nK\x05\x85R."
    assert read_pickle(data, "a pickle").arguments == (5,)


def test_what_is_written_is_what_python_reads() -> None:
    value: dict[object, object] = {"a": [1, -1, 1 << 40, 2.5, None, True, False, "text"], "b": ((), [], {}), 3: "x"}
    assert pickle.loads(write_pickle(value)) == value
    record = make_record("argparse Namespace", state={"lr": 0.5})
    assert pickle.loads(write_pickle(record)) == argparse.Namespace(lr=0.5)


def edit_index(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = pickle.loads((folder / ".metadata").read_bytes())
        change(index)
        (folder / ".metadata").write_bytes(pickle.dumps(index))

    return damage


def edit_records(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """As edit_index, with values that torch's own classes would not take."""

    def damage(folder: Path) -> None:
        index = read_pickle((folder / ".metadata").read_bytes(), "the index")
        change(index.state)
        (folder / ".metadata").write_bytes(write_pickle(index))

    return damage


def compress(file: Path) -> None:
    """Deflate the entries of a zip."""
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def move_ranges(**members: Any) -> Callable[[Path], None]:
    return edit_index(lambda index: [info.__dict__.update(members) for info in index.storage_data.values()])


def drop_chunk(index: Any) -> None:
    index.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].chunks.pop()


@pytest.mark.parametrize(
    ("damage", "error", "word"),
    [
        (lambda folder: os.truncate(folder / "__0_0.distcp", 5000), SourceError, "truncated"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), SourceError, "no such file"),
        (lambda folder: os.truncate(folder / ".metadata", 500), FormatError, "not a readable pickle"),
        (lambda folder: os.truncate(folder / "common.pt", 100), FormatError, "common.pt"),
        (move_ranges(relative_path="../secret"), SourceError, "outside the folder"),
        (move_ranges(offset=-5), SourceError, "truncated"),
        (edit_index(drop_chunk), SourceError, "do not cover the tensor"),
        (edit_index(lambda index: index.storage_data.clear()), SourceError, "no file is listed"),
        (lambda folder: compress(folder / "common.pt"), FormatError, "byteorder"),
        (
            edit_records(lambda state: [e.state.update(size=make_record("torch Size"))
                for e in state["state_dict_metadata"].values()]), FormatError, "unexpected structure",
        ),
    ],
)  # fmt: skip
def test_damage_is_found_when_it_is_opened(
    damage: Callable[[Path], None], error: type[MconvError], word: str, written: Path, model: Path
) -> None:
    damage(written)
    with pytest.raises(error) as raised:
        open_megatron(written, model)
    assert word in f"{raised.value} {raised.value.hint}"


def test_chunks_that_overlap_are_refused(written: Path, model: Path) -> None:
    """Their values add up to those of the tensor, but some would be read from nowhere."""

    def repeat(index: Any) -> None:
        chunks = index.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].chunks
        chunks[1] = chunks[0]

    edit_index(repeat)(written)
    tensor = open_megatron(written, model).tensors["model.layers.0.mlp.down_proj.weight"]
    with pytest.raises(FormatError, match="overlap"):
        tensor.read(0, 8)


def test_there_may_be_more_files_than_a_process_may_open(state: State, model: Path, tmp_path: Path) -> None:
    writer = dcp.FileSystemWriter(tmp_path / "many", single_file_per_rank=False)
    dcp.save(unstacked(state), storage_writer=writer, no_dist=True)
    assert len(list((tmp_path / "many").glob("*.distcp"))) > 14
    program = f"ulimit -S -n 16; {sys.executable} -m mconv.convert.cli.main inspect {tmp_path}/many --hf-config {model}"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_chunk_that_is_not_what_the_index_says_is_refused(written: Path) -> None:
    edit_index(
        lambda index: index.storage_data.update(
            dict(zip(index.storage_data, reversed(list(index.storage_data.values())), strict=True))
        )
    )(written)
    tensors = read_index(written).tensors
    with pytest.raises(FormatError):
        _ = [chunk.blob.tensor for tensor in tensors.values() for chunk in tensor.chunks]


def test_an_output_that_exists_is_kept(model: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    for options in ((), ("--overwrite",)):
        assert command(cli, "hf-to-megatron", model, tmp_path / "precious", *options).code == 4
    assert (tmp_path / "precious" / "file").read_text() == "x"
    assert command(cli, "hf-to-megatron", model, tmp_path / "new").code == 0
    assert command(cli, "hf-to-megatron", model, tmp_path / "new").code == 4
    assert command(cli, "hf-to-megatron", model, tmp_path / "new", "--overwrite").code == 0
    assert not list(tmp_path.glob("*.partial"))


def save_ranks(state: State, folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """One rank's file of the legacy format."""
    saved = {"args": argparse.Namespace(num_layers=LAYERS), "checkpoint_version": 3.0, "model": unstacked(state)}
    change(saved)
    (folder / "mp_rank_00").mkdir(parents=True)
    torch.save(saved, folder / "mp_rank_00" / "model_optim_rng.pt")
    return folder


def test_the_legacy_format_is_read(state: State, model: Path, tmp_path: Path) -> None:
    # A size that is none is as good as one that is missing.
    odd = {"pipeline_model_parallel_size": "x"}
    assert_model(save_ranks(state, tmp_path / "ranks", lambda saved: vars(saved["args"]).update(odd)), model)
    stages = {"model0": unstacked(state), "model1": {}}
    stages["model1"] = {key: stages["model0"].pop(key) for key in list(stages["model0"]) if ".layers.1." in key}
    stages["model1"] = {key.replace(".layers.1.", ".layers.0."): tensor for key, tensor in stages["model1"].items()}
    assert_model(
        save_ranks(state, tmp_path / "virtual", lambda saved: (saved.pop("model"), saved.update(stages))), model
    )


class Displaced:
    """A tensor whose values begin at no number."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        storage = self.tensor._typed_storage()
        return (torch._utils._rebuild_tensor_v2, (storage, "0", (4,), (1,), False, OrderedDict()))


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda saved: saved.update(model={"language_model": {}}), FormatError, "before Megatron-Core"),
        (lambda saved: saved.pop("model"), FormatError, "does not contain a model"),
        (lambda saved: saved["model"].popitem(), MappingError, "missing"),
        (lambda saved: saved.update(rng=os.getpid), FormatError, "the pickle uses posix.getpid"),
        (lambda saved: saved["model"].update({5: torch.zeros(1)}), FormatError, "before Megatron-Core"),
        (lambda saved: saved["model"].update({"x": Displaced(torch.zeros(4))}), FormatError, "not stored row by row"),
    ],
    ids=["older", "no model", "a tensor less", "hostile", "no name", "no numbers"],
)
def test_a_legacy_file_that_is_none_is_refused(
    change: Callable[[dict[str, Any]], object],
    error: type[MconvError],
    word: str,
    state: State,
    model: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=word):
        open_megatron(save_ranks(state, tmp_path / "ranks", change), model)


def test_a_missing_rank_is_named(state: State, model: Path, tmp_path: Path) -> None:
    folder = save_ranks(state, tmp_path / "ranks")
    shutil.copytree(folder / "mp_rank_00", folder / "mp_rank_02")
    with pytest.raises(SourceError, match="no file of tensor rank 1, pipeline rank 0, expert rank 0"):
        open_megatron(folder, model)


def test_a_sliding_window_is_among_the_settings(tmp_path: Path, command: Command) -> None:
    source = checkpoints.mistral(tmp_path / "model", **{**SMALL, "sliding_window": 64})
    assert command(cli, "hf-to-megatron", source, tmp_path / "megatron").code == 0
    (tmp_path / "megatron" / "config.json").unlink()
    assert open_megatron(tmp_path / "megatron").spec == open_hf(source).spec
