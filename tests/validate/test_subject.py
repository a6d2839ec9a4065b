"""`Subject`: each part of an artifact or a reference is read once, whatever looks at it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers import gguf, gguf_split, safetensors, torch_dist
from mconv.convert.errors import SourceError, UsageError
from mconv.convert.layouts.hf import reader as hf_reader
from mconv.convert.layouts.megatron import reader as megatron_reader
from mconv.inference.header import read_header
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.inference.llama_file import LlamaFile
from mconv.inference.transformers_model import TransformersModel
from mconv.quantize.cli import cli as mquant
from mconv.validate import subject as subject_module
from mconv.validate.cli import cli
from mconv.validate.findings import CHECKS
from mconv.validate.subject import Subject, open_subjects

from support import tiny_gguf
from support.command_line import Command, Result
from support.paths import EVALUATION_TEXT, TINY_MISTRAL


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each function that opens a file, and each that loads a model, was called with which path."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(owner: Any, name: str, *, path_of: Callable[..., Path] = lambda *arguments: arguments[0]) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            # Of a class, the first argument is the object.
            given = arguments[1:] if isinstance(owner, type) else arguments
            label = f"{owner.__name__.rpartition('.')[2]}.{name}"
            if owner is LlamaFile and options.get("vocabulary_only"):
                label = "LlamaFile of a vocabulary"
            counts[label, path_of(*given).name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    # Wherever a name was imported to it has to be replaced.
    count(gguf, "read_gguf")
    monkeypatch.setattr(gguf_split, "read_gguf", gguf.read_gguf)
    monkeypatch.setattr("mconv.inference.header.read_gguf", gguf.read_gguf)
    count(safetensors, "read_tensors")
    monkeypatch.setattr(hf_reader, "read_tensors", safetensors.read_tensors)
    count(torch_dist, "read_index")
    monkeypatch.setattr(megatron_reader, "read_index", torch_dist.read_index)
    for name in ("read_gguf_model", "read_object", "read_shards", "read_saved", "read_vocabulary"):
        count(subject_module, name)
    count(subject_module, "gguf_vocabulary", path_of=lambda name, _: Path(name))
    count(LlamaFile, "__init__")
    count(LlamaCppModel, "__init__")
    count(TransformersModel, "__init__", path_of=lambda checkpoint, *_: checkpoint.path)
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled example in two GGUF files and in Megatron's layout."""
    folder = tmp_path_factory.mktemp("subject")
    mconv.main(["hf-to-gguf", str(TINY_MISTRAL), str(folder / "bf16.gguf")], standalone_mode=False)
    mconv.main(["hf-to-megatron", str(TINY_MISTRAL), str(folder / "megatron")], standalone_mode=False)
    arguments = [str(TINY_MISTRAL), "--type", "Q4_K_M", "--output", str(folder / "q4.gguf")]
    mquant.main(arguments, standalone_mode=False)
    return folder


def report(command: Command, *arguments: object) -> Result:
    options = ("--text", EVALUATION_TEXT, "--ctx", 64, "--chunks", 2, "--prompt", "Once", "--threads", 1, "--json", "-")
    return command(cli, "report", *arguments, *options)


def test_a_report_opens_each_file_and_loads_each_model_once(
    folder: Path, command: Command, opened: Counter[tuple[str, str]]
) -> None:
    result = report(command, folder / "bf16.gguf", folder / "q4.gguf", "--reference", TINY_MISTRAL)
    assert result.json["checks"] == list(CHECKS), result.err
    files = ("bf16.gguf", "q4.gguf")
    expected = {
        (function, name): 1
        for name in files
        for function in (
            "gguf.read_gguf", "subject.read_gguf_model", "subject.gguf_vocabulary",
            "LlamaCppModel.__init__", "LlamaFile.__init__", "LlamaFile of a vocabulary",
        )
    }  # fmt: skip
    expected |= {
        ("safetensors.read_tensors", "model.safetensors"): 1,
        ("subject.read_object", "config.json"): 1,
        ("subject.read_shards", TINY_MISTRAL.name): 1,
        ("subject.read_vocabulary", TINY_MISTRAL.name): 1,
        ("TransformersModel.__init__", TINY_MISTRAL.name): 1,
        # What llama.cpp tokenizes with for the folder, by way of a file with nothing else in it.
        ("LlamaFile of a vocabulary", f"{TINY_MISTRAL.name}.gguf"): 1,
    }
    assert opened == expected


def test_a_report_of_folders_opens_each_once(
    folder: Path, command: Command, tmp_path: Path, opened: Counter[tuple[str, str]]
) -> None:
    described = shutil.copytree(TINY_MISTRAL, tmp_path / "described")
    arguments = (TINY_MISTRAL, folder / "megatron", "--reference", folder / "bf16.gguf", "--hf-config", described)
    result = report(command, *arguments)
    assert result.json["checks"] == list(CHECKS), result.err
    assert set(opened.values()) == {1}, opened
    assert opened["TransformersModel.__init__", "megatron"] == opened["subject.read_saved", "megatron"] == 1
    assert opened["TransformersModel.__init__", TINY_MISTRAL.name] == opened["gguf.read_gguf", "bf16.gguf"] == 1


def test_an_artifact_that_is_the_reference_is_loaded_once(
    folder: Path, command: Command, opened: Counter[tuple[str, str]]
) -> None:
    path = folder / "bf16.gguf"
    result = report(command, path, "--reference", path)
    assert result.json["kl"]["results"][0]["kl"]["max"] == 0, result.err
    assert opened["gguf.read_gguf", "bf16.gguf"] == opened["LlamaCppModel.__init__", "bf16.gguf"] == 1


def test_without_perplexity_one_artifact_is_loaded_at_a_time(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    most: list[int] = []
    load, unload = Subject._load, Subject.unload

    def counted_load(subject: Subject) -> Any:
        loaded.append(subject.path.name)
        most.append(len(loaded))
        return load(subject)

    def counted_unload(subject: Subject) -> None:
        if subject._model is not None:
            loaded.remove(subject.path.name)
        unload(subject)

    monkeypatch.setattr(Subject, "_load", counted_load)
    monkeypatch.setattr(Subject, "unload", counted_unload)
    files = (folder / "bf16.gguf", folder / "q4.gguf", folder / "megatron")
    options = ("--hf-config", TINY_MISTRAL, "--skip", "perplexity,kl,weights,tokens,template")
    result = report(command, *files, "--reference", TINY_MISTRAL, *options)
    assert result.code == 0, result.err
    assert (max(most), len(most), loaded) == (2, 4, [])


def test_the_vocabulary_of_a_loaded_model_is_the_models(tmp_path: Path) -> None:
    path = tiny_gguf.write_noise(tmp_path / "m.gguf")
    with Subject(path, threads=1) as subject:
        alone = subject.llama_vocabulary()
        assert alone is subject.llama_vocabulary()
        model = subject.model()
        assert model is subject.model()
        assert subject.llama_vocabulary() is model.vocabulary
        # What still holds the other one may go on using it.
        assert alone.tokenize("a").tolist() == model.vocabulary.tokenize("a").tolist()
    assert subject.model() is not model
    subject.close()


def test_what_is_closed_is_read_again(folder: Path) -> None:
    with Subject(folder / "q4.gguf") as subject:
        before = (subject.header, subject.tokenizer, subject.checkpoint)
        assert subject.header is before[0]
    assert subject.header is not before[0]
    assert subject.header.tensors == before[0].tensors
    assert subject.tokenizer.vocabulary == before[1].vocabulary


def test_the_vocabulary_of_a_folder_in_llama_cpp(folder: Path) -> None:
    of_folder, of_file = Subject(TINY_MISTRAL).llama_vocabulary(), Subject(folder / "bf16.gguf").llama_vocabulary()
    assert of_folder.size == of_file.size == 2048
    assert of_folder.tokenize("Once upon a time").tolist() == of_file.tokenize("Once upon a time").tolist()


def test_a_header_that_was_read_is_not_read_again(tmp_path: Path) -> None:
    path = tiny_gguf.write_noise(tmp_path / "m.gguf")
    metadata = read_header(path)
    with LlamaCppModel(path, 1, metadata) as given, LlamaCppModel(path, 1) as read:
        assert given.provenance == read.provenance
        assert set(given.provenance) == {key for key in metadata if key.startswith("general.")}


def test_a_path_given_twice_is_one_subject(folder: Path) -> None:
    paths = [folder / "q4.gguf", TINY_MISTRAL, folder / "q4.gguf"]
    with open_subjects(paths) as (first, other, again):
        assert first is again is not other
        assert [each.layout for each in (first, other)] == ["gguf", "hf"]
    with open_subjects([folder / "megatron"], reading={"hf_config": TINY_MISTRAL}) as (megatron,):
        assert megatron.layout == "megatron"
        assert megatron.checkpoint.vocabulary() is megatron.tokenizer.vocabulary


def test_hf_config_is_for_megatron(folder: Path) -> None:
    with (
        pytest.raises(UsageError, match="none of these is a Megatron-Core checkpoint"),
        open_subjects([folder / "q4.gguf", TINY_MISTRAL], reading={"hf_config": TINY_MISTRAL}),
    ):
        pass


def test_a_missing_path(tmp_path: Path) -> None:
    subject = Subject(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        subject.check_runnable()
    with pytest.raises(SourceError, match="nothing: no such file or folder"):
        _ = subject.tokenizer
