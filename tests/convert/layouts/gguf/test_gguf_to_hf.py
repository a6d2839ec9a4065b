"""GGUF to Hugging Face: what went in comes out, byte for byte; configuration and tokenizer mean the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors import safe_open

from mconv.convert.cli.main import cli
from mconv.convert.containers.gguf import TensorInfo, encode_header, read_gguf
from mconv.convert.layouts.gguf.reader import open_gguf
from mconv.convert.model.metadata import Value, ValueType, array, boolean, string, uint32
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tokenizer import read_vocabulary
from mconv.convert.tokenizer.from_gguf import vocabulary_of_metadata
from mconv.convert.tokenizer.hf_files import tokenizer_files
from mconv.convert.tokenizer.pretokenizer import _LLAMA_3

from support import checkpoints
from support.checkpoints_tokenizers import (
    TEXTS,
    LlamaCppModel,
    Loaded,
    packaged,
    sentencepiece_folder,
    tekken_folder,
    trained_folder,
    write_vocabulary,
)
from support.command_line import Command, Convert
from support.gguf_compare import assert_same_tensors, differing_keys
from support.gguf_parts import write_parts

MODELS = {
    "mistral": lambda folder: checkpoints.mistral(folder, max_shard_size=1_000_000, num_hidden_layers=2),
    "tied": lambda folder: checkpoints.llama(folder, tie_word_embeddings=True, num_hidden_layers=1),
    "experts": lambda folder: checkpoints.mixtral(folder, num_hidden_layers=1),
    "biased": lambda folder: checkpoints.llama(folder, attention_bias=True, mlp_bias=True, num_hidden_layers=1),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small bfloat16 checkpoints, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("round-trip")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            MODELS[name](folder / name)
        return folder / name

    return make


@pytest.fixture
def there(command: Command, tmp_path: Path) -> Convert:
    """To GGUF with our command line."""

    def run(checkpoint: Path, *options: object, name: str | None = None) -> Path:
        out = tmp_path / (name or f"{checkpoint.name}.gguf")
        result = command(cli, "hf-to-gguf", checkpoint, out, "--threads", 1, *options)
        assert result.code == 0, result.err
        return out

    return run


@pytest.fixture
def back(command: Command, tmp_path: Path) -> Convert:
    """From GGUF with our command line."""

    def run(checkpoint: Path, *options: object, name: str = "back") -> Path:
        result = command(cli, "gguf-to-hf", checkpoint, tmp_path / name, "--threads", 2, *options)
        assert result.code == 0, result.err
        return tmp_path / name

    return run


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder, as the safetensors package reads it."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def assert_equal_bytes(found: Path, expected: Path) -> None:
    ours, original = stored(found), stored(expected)
    assert sorted(ours) == sorted(original)
    for name, tensor in original.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_keeps_every_byte_and_the_configuration(
    name: str, models: Callable[[str], Path], there: Convert, back: Convert
) -> None:
    found = back(there(models(name)), "--max-shard-size", "1MB")
    assert_equal_bytes(found, models(name))
    assert len(list(found.glob("*.safetensors"))) > 1
    ours, original = (transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (found, models(name)))
    assert ours == {**original, "_name_or_path": str(found)}


@pytest.mark.parametrize("name", ["mistral", "tied", "experts"])
def test_transformers_computes_the_same_logits(
    name: str, models: Callable[[str], Path], there: Convert, back: Convert
) -> None:
    found = back(there(models(name)))
    tokens = torch.arange(3, 35).unsqueeze(0)
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        ours, original = load(found)(tokens).logits, load(models(name))(tokens).logits
    assert original.std() > 0.1
    assert torch.equal(ours, original)


def test_a_second_conversion_gives_the_same_file(models: Callable[[str], Path], there: Convert, back: Convert) -> None:
    first = there(models("experts"))
    second = there(back(first))
    assert sorted(listed(first)) == sorted(listed(second))
    # Said in the second, and the default of llama.cpp in the first.
    implied = {"tokenizer.ggml.unknown_token_id": uint32(0), "tokenizer.ggml.add_sep_token": boolean(False)}
    assert differing_keys(first, second) == {key: (None, value) for key, value in implied.items()}


def listed(path: Path) -> list[tuple[str, str, bytes]]:
    return [(tensor.name, tensor.dtype, tensor.read(0, 1).tobytes()) for tensor in read_gguf(path).tensors]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_scaling_comes_back(rope: dict, tmp_path: Path, there: Convert, back: Convert) -> None:
    parameters = {"rope_theta": 500000.0, **rope}
    checkpoint = checkpoints.llama(tmp_path / "scaled", rope_parameters=parameters, num_hidden_layers=1)
    config = transformers.AutoConfig.from_pretrained(back(there(checkpoint)))
    assert config.rope_parameters == parameters


def test_a_sliding_window_comes_back(tmp_path: Path, there: Convert, back: Convert) -> None:
    """In a key of our own: those of llama.cpp say nothing of it for these models."""
    checkpoint = checkpoints.mistral(tmp_path / "windowed", sliding_window=1024, num_hidden_layers=1)
    assert transformers.AutoConfig.from_pretrained(back(there(checkpoint))).sliding_window == 1024


def test_ministral3_comes_back_as_its_text_model(ministral3: Path, there: Convert, back: Convert) -> None:
    found = back(there(ministral3))
    original = transformers.AutoConfig.from_pretrained(ministral3).text_config
    config = transformers.AutoConfig.from_pretrained(found)
    assert config.architectures == ["Ministral3ForCausalLM"]
    for key in ("head_dim", "hidden_size", "max_position_embeddings", "rms_norm_eps", "vocab_size"):
        assert getattr(config, key) == getattr(original, key)
    for key in ("factor", "rope_theta", "llama_4_scaling_beta", "original_max_position_embeddings", "mscale_all_dim"):
        assert config.rope_parameters[key] == original.rope_parameters[key]
    ours = stored(found)
    for name, tensor in stored(ministral3).items():
        if "language_model" in name:
            assert torch.equal(ours[name.replace("language_model.model.", "model.")], tensor)


def test_quantized_tensors_are_decoded_in_their_rows(
    models: Callable[[str], Path], there: Convert, back: Convert
) -> None:
    """Q8_0 by gguf-py's own decoder, with the rows of the query in Hugging Face's order again."""
    file = there(models("mistral"), "--outtype", "q8_0")
    ours = stored(back(file, "--dtype", "f32"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    value = tensors["blk.0.attn_v.weight"]
    decoded = torch.from_numpy(gguf.quants.dequantize(value.data, value.tensor_type))
    assert torch.equal(ours["model.layers.0.self_attn.v_proj.weight"], decoded)
    query = ours["model.layers.0.self_attn.q_proj.weight"]
    original = stored(models("mistral"))["model.layers.0.self_attn.q_proj.weight"].float()
    assert query.dtype == torch.float32
    torch.testing.assert_close(query, original, rtol=0, atol=float(original.abs().max()) / 200)


def test_dtype_auto_is_the_16_bit_type_of_the_file(
    models: Callable[[str], Path], there: Convert, back: Convert
) -> None:
    for outtype, dtype in (("f16", torch.float16), ("f32", torch.float32), ("q8_0", torch.bfloat16)):
        found = back(there(models("tied"), "--outtype", outtype, "--overwrite"), name=outtype)
        assert {tensor.dtype for tensor in stored(found).values()} == {dtype}
        assert transformers.AutoConfig.from_pretrained(found).dtype == dtype


def test_a_split_model_is_read_as_one(
    tmp_path: Path, models: Callable[[str], Path], there: Convert, back: Convert, command: Command
) -> None:
    first = write_parts(there(models("mistral")), tmp_path / "parts", 8)
    parts = sorted(first.parent.glob("*.gguf"))
    assert len(parts) == 3
    assert_equal_bytes(back(first), models("mistral"))

    later = command(cli, "gguf-to-hf", parts[1], tmp_path / "later")
    assert (later.code, parts[0].name in later.err) == (3, True)
    parts[2].rename(tmp_path / "elsewhere")
    missing = command(cli, "gguf-to-hf", first, tmp_path / "missing")
    assert (missing.code, f"{parts[2].name}: no such file" in missing.err) == (3, True)
    shutil.copy(parts[1], parts[2])
    renamed = command(cli, "gguf-to-hf", first, tmp_path / "renamed")
    assert (renamed.code, "its header says part 2 of 3" in renamed.err) == (3, True)


def rebuilt(folder: Path, out: Path, vocab_size: int) -> Path:
    """The tokenizer of a folder, through the metadata of a GGUF file and out again, with the folder's config.json."""
    vocabulary = read_vocabulary(folder, vocab_size)
    path = write_vocabulary(out.with_suffix(".gguf"), vocabulary)
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    read = vocabulary_of_metadata(path.name, read_gguf(path).metadata, vocab_size)
    for name, content in tokenizer_files(read).items():
        (out / name).write_bytes(content)
    return out


SPECIAL = "<s>[INST] Bonjour [/INST] \u65e5\u672c</s> x"


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_sentencepiece_finds_the_same_ids(version: str, tmp_path: Path) -> None:
    name = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}[version]
    vocab_size = {"v1": 32000, "v3": 32768}[version]
    folder = sentencepiece_folder(tmp_path / "original", name, vocab_size)
    out = rebuilt(folder, tmp_path / "rebuilt", vocab_size)
    ours = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    original = sentencepiece.SentencePieceProcessor(model_file=str(packaged(name)))
    for text in [*TEXTS, SPECIAL]:
        assert ours.EncodeAsIds(text) == original.EncodeAsIds(text)
    loaded = Loaded(out)
    for text in TEXTS:
        # Where a text begins with a space, Metaspace puts none before it and SentencePiece does.
        if not text.startswith(" "):
            assert loaded.ids(text) == original.EncodeAsIds(text)
    assert [ours.IdToPiece(n) for n in range(vocab_size)] == [original.IdToPiece(n) for n in range(vocab_size)]
    assert (ours.bos_id(), ours.eos_id(), ours.unk_id()) == (original.bos_id(), original.eos_id(), original.unk_id())
    files = (write_vocabulary(tmp_path / f"{p.name}-v.gguf", read_vocabulary(p, vocab_size)) for p in (folder, out))
    first, second = map(LlamaCppModel, files)
    assert first.ids(SPECIAL, special=True) == second.ids(SPECIAL, special=True)


def test_a_llama_tokenizer_of_transformers_finds_the_same_ids(tmp_path: Path) -> None:
    """As published: tokenizer.model and tokenizer.json, the special tokens listed again in tokenizer_config.json."""
    folder = sentencepiece_folder(tmp_path / "original", "tokenizer.model.v1", 32768)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {model.IdToPiece(n): n for n in range(32000)} | {"[TOOL]": 32000}
    ranked = sorted(vocab, key=lambda text: -model.GetScore(vocab[text]) if vocab[text] < 32000 else 0)
    merges = [(t[:at], t[at:]) for t in ranked for at in range(1, len(t)) if t[:at] in vocab and t[at:] in vocab]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    extra = {"additional_special_tokens": ["[TOOL]"], "add_bos_token": True}
    tokenizer = transformers.LlamaTokenizer(vocab, merges, **names, **extra)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    listed = {str(n): {"content": text, "special": True} for n, text in ((0, "<unk>"), (32000, "[TOOL]"))}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": listed}))
    load = transformers.AutoTokenizer.from_pretrained
    ours, original = load(rebuilt(folder, tmp_path / "rebuilt", 32768)), load(folder)
    for text in [*TEXTS, SPECIAL, "a[TOOL] b<unk>"]:
        ids = original(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        assert ours.decode(ids) == original.decode(ids)
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "rebuilt" / "tokenizer.model"))
    assert (loaded.unk_id(), loaded.IdToPiece(32000)) == (0, "[TOOL]")


def test_tekken_finds_the_ids_of_mistral_common(tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    folder = tekken_folder(tmp_path / "original", "v7")
    loaded = Loaded(rebuilt(folder, tmp_path / "rebuilt", 131072))
    original = Tekkenizer.from_file(folder / "tekken.json")
    for text in TEXTS:
        assert loaded.ids(text) == original.encode(text, bos=False, eos=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "rebuilt")
    assert tokenizer("[INST]Salut[/INST]")["input_ids"] == [
        original.bos_id,
        original.get_special_token("[INST]"),
        *original.encode("Salut", bos=False, eos=False),
        original.get_special_token("[/INST]"),
    ]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_llama_3_finds_the_same_ids(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "original", _LLAMA_3)
    out = rebuilt(folder, tmp_path / "rebuilt", 1024)
    load = transformers.AutoTokenizer.from_pretrained
    ours, original = load(out), load(folder)
    for text in [*TEXTS, "<|begin_of_text|>camelCase x<|end_of_text|>", "camelCasecamelCase"]:
        assert ours(text)["input_ids"] == original(text)["input_ids"]
        assert ours(text, add_special_tokens=False)["input_ids"] == Loaded(folder).ids(text)
    assert (ours.bos_token_id, ours.eos_token_id) == (original.bos_token_id, original.eos_token_id)


def test_the_chat_template_and_the_sampling_come_back(
    tmp_path: Path, models: Callable[[str], Path], there: Convert, back: Convert
) -> None:
    source = tmp_path / "source"
    shutil.copytree(models("tied"), source)
    (source / "generation_config.json").write_text('{"temperature": 0.7, "top_p": 0.95, "do_sample": true}')
    found = back(there(source))
    assert (found / "chat_template.jinja").read_text() == checkpoints.TEMPLATE
    generation = json.loads((found / "generation_config.json").read_text())
    expected = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.7, "top_p": 0.95, "do_sample": True}
    assert generation == expected


def test_the_dry_run_tells_the_size_and_writes_nothing(
    models: Callable[[str], Path], there: Convert, back: Convert, command: Command, tmp_path: Path
) -> None:
    file = there(models("experts"))
    options = ("--max-shard-size", "2MB")
    planned = command(cli, "gguf-to-hf", file, tmp_path / "back", *options, "--dry-run", "--json").json
    assert not (tmp_path / "back").exists()
    found = back(file, *options)
    sizes = {str(path): path.stat().st_size for path in found.iterdir()}
    assert {entry["path"]: entry["bytes"] for entry in (*planned["files"], *planned["other_files"])} == sizes
    assert planned["bytes"] == sum(sizes.values())
    shards = [entry for entry in planned["files"] if entry["path"].endswith("safetensors")]
    assert len(shards) > 1
    assert all(entry["bytes"] < 2_100_000 for entry in shards)


def test_an_earlier_checkpoint_is_replaced_whole(
    models: Callable[[str], Path], there: Convert, back: Convert, command: Command
) -> None:
    file = there(models("mistral"))
    found = back(file, "--max-shard-size", "1MB")
    (found / "tekken.json").write_text("{}")
    refused = command(cli, "gguf-to-hf", file, found)
    assert (refused.code, "is not empty" in refused.err) == (4, True)
    back(file, "--overwrite")
    assert [path.name for path in found.glob("model*")] == ["model.safetensors"]
    assert not (found / "tekken.json").exists()
    assert_equal_bytes(found, models("mistral"))


def test_what_a_killed_run_left_is_no_hindrance(
    models: Callable[[str], Path], there: Convert, back: Convert, tmp_path: Path
) -> None:
    file = there(models("mistral"))
    (tmp_path / "back.partial" / "old").mkdir(parents=True)
    (tmp_path / "back.partial" / "model-00001-of-00002.safetensors.partial").write_bytes(b"half a model")
    (tmp_path / "back.partial" / "old" / "config.json").write_text("{}")
    assert not [path.name for path in back(file).iterdir() if path.name == "old" or path.suffix == ".partial"]
    assert not (tmp_path / "back.partial").exists()


def test_what_is_no_part_of_a_checkpoint_stays(models: Callable[[str], Path], there: Convert, back: Convert) -> None:
    file = there(models("mistral"))
    found = back(file)
    (found / "notes").mkdir()
    (found / "notes" / "run.md").write_text("mine")
    (found / "latest").symlink_to("notes/run.md")
    back(file, "--overwrite")
    assert (found / "notes" / "run.md").read_text() == "mine"
    assert (found / "latest").is_symlink()
    assert_equal_bytes(found, models("mistral"))


def test_weights_without_the_rest_do_not_stay(
    models: Callable[[str], Path], there: Convert, command: Command, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "out" / "tokenizer_config.json"
    in_the_way.mkdir(parents=True)
    result = command(cli, "gguf-to-hf", there(models("mistral")), tmp_path / "out", "--overwrite")
    assert (result.code, "tokenizer_config.json" in result.err) == (4, True)
    assert [path for path in tmp_path.rglob("*") if path.is_relative_to(tmp_path / "out")] == [
        tmp_path / "out",
        in_the_way,
    ]


def test_a_folder_that_holds_the_source_is_refused(
    models: Callable[[str], Path], there: Convert, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    file = there(models("mistral")).rename(folder / "config.json")
    before = file.read_bytes()
    refused = command(cli, "gguf-to-hf", file, folder, "--overwrite")
    assert (refused.code, "contains input files" in refused.err) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert file.read_bytes() == before


def rewrite(file: Path, out: Path, keys: Mapping[str, Value | None]) -> Path:
    """The header of a file with some keys changed, or removed where the value is None, over the same data."""
    original = read_gguf(file)
    changed = {**original.metadata, **keys}
    start = min(tensor.offset for tensor in original.tensors)
    infos = [TensorInfo(t.name, t.shape, BlockType[t.dtype], t.offset - start) for t in original.tensors]
    header = encode_header({key: value for key, value in changed.items() if value is not None}, infos)
    out.write_bytes(header + file.read_bytes()[start:])
    return out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": string("qwen2")}, "GGUF architecture 'qwen2' is not supported"),
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"general.type": string("adapter")}, "contains a adapter, not a model"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": string("two")}, "llama.block_count is 'two'"),
        ({"llama.block_count": uint32(5)}, "tensor blk.1.attn_norm.weight is missing"),
        ({"llama.attention.head_count": uint32(0)}, "the number of heads or the hidden size is zero"),
        ({"llama.attention.head_count": uint32(4)}, "has shape [512, 256], but the file's metadata makes it"),
        ({"llama.feed_forward_length": uint32(17)}, "has shape [512, 256], but the file's metadata makes it"),
        ({"llama.rope.scaling.type": string("longrope")}, "rope scaling 'longrope' is not supported"),
        ({"llama.rope.dimension_count": uint32(32)}, "rope.dimension_count is 32, but the heads have 64"),
        ({"tokenizer.ggml.model": string("bert")}, "unknown tokenizer model 'bert'"),
        ({"tokenizer.ggml.tokens": None}, "0 tokens"),
        ({"tokenizer.ggml.bos_token_id": uint32(99999)}, "bos token id 99999 is outside the vocabulary"),
        ({"tokenizer.ggml.bos_token_id": string("one")}, "tokenizer.ggml.bos_token_id is not a int"),
        ({"tokenizer.chat_template": uint32(1)}, "tokenizer.chat_template is not a string"),
        ({"split.count": uint32(2)}, "one of 2 parts"),
        ({"llama.expert_count": uint32(8), "llama.expert_used_count": uint32(2)}, "is missing"),
        ({"llama.expert_count": uint32(1 << 30), "llama.expert_used_count": uint32(2)}, "more than any model has"),
        ({"llama.block_count": uint32(1 << 30)}, "more than any model has"),
        ({"tokenizer.ggml.scores": array(ValueType.STRING, ["x"] * 2048)}, "scores holds values that are not numbers"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    keys: dict, message: str, models: Callable[[str], Path], there: Convert, command: Command, tmp_path: Path
) -> None:
    file = rewrite(there(models("tied")), tmp_path / "bad.gguf", keys)
    result = command(cli, "gguf-to-hf", file, tmp_path / "out")
    assert result.code == 3
    error, hint = [line for line in result.err.splitlines() if not line.startswith("note:")]
    assert error.startswith("error: ") and message in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out").exists()


def test_a_template_cannot_name_a_file_elsewhere(
    models: Callable[[str], Path], there: Convert, back: Convert, tmp_path: Path
) -> None:
    keys = {"tokenizer.chat_template.../../evil": string("{{ x }}")}
    found = back(rewrite(there(models("tied")), tmp_path / "evil.gguf", keys))
    names = [str(path.relative_to(found)) for path in sorted(tmp_path.rglob("*.jinja"))]
    assert names == ["additional_chat_templates/______evil.jinja", "chat_template.jinja"]


def test_infinity_in_a_block_is_refused_and_leaves_nothing(
    models: Callable[[str], Path], there: Convert, command: Command, tmp_path: Path
) -> None:
    file = there(models("tied"), "--outtype", "q8_0")
    tensor = next(tensor for tensor in read_gguf(file).tensors if tensor.name == "blk.0.attn_q.weight")
    data = bytearray(file.read_bytes())
    data[tensor.offset : tensor.offset + 2] = np.float16(np.inf).tobytes()
    file.write_bytes(data)
    result = command(cli, "gguf-to-hf", file, tmp_path / "out")
    assert result.code == 3
    assert "tensor model.layers.0.self_attn.q_proj.weight, row 0, column 0 is" in result.err
    assert not (tmp_path / "out").exists()


def test_opening_reads_headers_alone(models: Callable[[str], Path], there: Convert) -> None:
    file = there(models("experts"))
    checkpoint = open_gguf(file)
    assert len(checkpoint.tensors) == 3 + 6 + 1 + 24
    assert checkpoint.spec.experts == 8
    assert_same_tensors(file, file)
