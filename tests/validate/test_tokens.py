"""`mval tokens`: real tokenizers against what llama.cpp and tokenizers make of them, and everything that goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mconv.convert.errors import FormatError, SourceError
from mconv.convert.tokenizer import TokenType, Vocabulary, pretokenizer
from mconv.inference.llama_vocabulary import MAX_WORD, LlamaVocabulary
from mconv.validate.cli import cli
from mconv.validate.findings import failed
from mconv.validate.subject import Subject
from mconv.validate.tokens.compare import TokensResult, compare_tokenizers, compare_tokens, text_group
from mconv.validate.tokens.corpus import corpus
from mconv.validate.tokens.sources import TokenizerSource

from support import mutations_vocabulary as mutations
from support.checkpoints_tokenizers import (
    converted_vocabulary,
    llama_2_folder,
    packaged,
    sentencepiece_folder,
    tekken_folder,
    tekken_json_folder,
    trained_folder,
    write_config,
    write_vocabulary,
)
from support.command_line import Command
from support.gguf_parts import write_parts
from support.golden import Golden
from support.paths import TINY_MISTRAL as TINY
from support.small_tekken import SIZE, SPECIAL, small_tekken

V1 = "tokenizer.model.v1"
V3 = "mistral_instruct_tokenizer_240323.model.v3"
V7 = "mistral_instruct_tokenizer_241114.model.v7"


def source(path: Path) -> TokenizerSource:
    return Subject(path).tokenizer


class Pair:
    """A folder as the reference, and GGUF files with its vocabulary, right or changed."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        self.reference = source(folder)

    def artifact(self, change: Callable[[Vocabulary], Vocabulary] = lambda vocabulary: vocabulary) -> Path:
        self.out.mkdir(exist_ok=True)
        return write_vocabulary(self.out / "artifact.gguf", change(self.reference.vocabulary))

    def compare(self, change: Callable[[Vocabulary], Vocabulary] = lambda vocabulary: vocabulary) -> TokensResult:
        return compare_tokenizers(source(self.artifact(change)), self.reference, [])


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Magistral's tokenizer, v13: `[THINK]` is a special token."""
    folder = tmp_path_factory.mktemp("tekken")
    return Pair(small_tekken(folder / "v13", "v13"), folder / "out")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small tokenizer.json with the split of Llama 3."""
    folder = tmp_path_factory.mktemp("trained")
    return Pair(trained_folder(folder / "llama", pretokenizer._LLAMA_3), folder / "out")


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Mistral 7B v0.3's SentencePiece file."""
    folder = tmp_path_factory.mktemp("spm")
    return Pair(sentencepiece_folder(folder / "v3", V3, 32768), folder / "out")


def kinds(result: TokensResult) -> list[tuple[str, str]]:
    """Kind and subject of what fails, in order."""
    return [(finding.kind, finding.subject) for finding in failed(result.findings)]


def causes(result: TokensResult) -> list[tuple[str, str]]:
    """The same without the texts that come out otherwise, of which there have to be some."""
    assert any(group.differences for group in result.groups)
    return [found for found in kinds(result) if found[0] != "text_differs"]


def warnings(result: TokensResult) -> list[str]:
    return [finding.kind for finding in result.findings if finding.severity == "warn"]


@pytest.mark.parametrize(
    ("name", "size", "symbols"),
    [(V1, 32000, []), (V3, 32768, ["llama_cpp_symbols"]), (V7, 32800, ["llama_cpp_symbols"])],
)
def test_sentencepiece_in_llama_cpp(tmp_path: Path, name: str, size: int, symbols: list[str]) -> None:
    result = Pair(sentencepiece_folder(tmp_path / "model", name, size), tmp_path / "out").compare()
    assert (kinds(result), warnings(result)) == ([], symbols)
    assert (result.tokenizer, result.reference_tokenizer) == ("llama.cpp", "sentencepiece")
    # Rows of the embedding matrix without a token are no difference.
    assert result.vocabulary.size == min(size, 32768)
    assert all(group.differences == 0 and group.undecoded is None for group in result.groups)


@pytest.mark.parametrize("version", ["v3", "v13"])
def test_tekken_in_llama_cpp(tmp_path: Path, version: str) -> None:
    if version == "v3":
        folder = write_config(tmp_path / "model", 131072)
        shutil.copy(packaged("tekken_240718.json"), folder / "tekken.json")
    else:
        folder = tekken_folder(tmp_path / "model", version, SPECIAL[version])
    result = Pair(folder, tmp_path / "out").compare()
    assert (kinds(result), warnings(result)) == ([], ["llama_cpp_split"])
    assert (result.special_tokens, result.wrong_special_tokens) == (1000, ())
    split = {group.name for group in result.groups if group.known}
    # Marks, and case beyond ASCII; nothing else.
    assert split == {"right to left", "indic", "southeast asian", "marks", "random", "joined tokens"}


@pytest.mark.parametrize("version", ["v7", "v11"])
def test_other_versions_of_tekken_in_llama_cpp(tmp_path: Path, version: str) -> None:
    result = Pair(small_tekken(tmp_path / "model", version), tmp_path / "out").compare()
    assert (kinds(result), warnings(result)) == ([], ["llama_cpp_split"])
    assert (result.special_tokens, result.wrong_special_tokens) == (1000, ())


@pytest.mark.parametrize("split", [pretokenizer._LLAMA_3, pretokenizer._LLAMA_4, pretokenizer._QWEN_2])
def test_a_trained_tokenizer_json_in_llama_cpp(tmp_path: Path, split: str) -> None:
    result = Pair(trained_folder(tmp_path / "model", split), tmp_path / "out").compare()
    assert kinds(result) == []
    assert result.reference_tokenizer == "tokenizers"
    assert set(warnings(result)) <= ({"llama_cpp_split"} if split == pretokenizer._LLAMA_4 else set())


def test_a_folder_against_itself_and_against_its_gguf_file(tmp_path: Path) -> None:
    pair = Pair(TINY, tmp_path / "out")
    assert (kinds(pair.compare()), warnings(pair.compare())) == ([], [])
    same = compare_tokens(TINY, TINY)
    assert (same.tokenizer, same.reference_tokenizer, same.findings) == ("tokenizers", "tokenizers", ())
    # Its tokenizer.json puts no space before a text that begins with one, where SentencePiece and llama.cpp do.
    back = compare_tokens(TINY, pair.artifact())
    assert (kinds(back), warnings(back)) == ([], ["leading_space"])
    assert back.reference_tokenizer == "llama.cpp"


def test_tekken_as_tokenizer_json(tekken: Pair, tmp_path: Path) -> None:
    folder = tekken_json_folder(tmp_path / "model", tekken.folder / "tekken.json", SIZE)
    result = compare_tokenizers(source(folder), tekken.reference, [])
    # transformers writes a file whose post-processor puts no <s> before a text.
    assert kinds(result) == [("bos_differs", "bos")]
    assert warnings(result) == []
    other_way = compare_tokenizers(tekken.reference, source(tekken.artifact()), [])
    assert (other_way.tokenizer, kinds(other_way), warnings(other_way)) == ("mistral-common", [], ["llama_cpp_split"])


def test_tekken_with_the_split_of_llama_3(tekken: Pair, tmp_path: Path) -> None:
    folder = tekken_json_folder(tmp_path / "model", tekken.folder / "tekken.json", SIZE)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pretokenizer._LLAMA_3}
    path.write_text(json.dumps(content))
    # Whoever uses the folder gets ids that the model was not trained on.
    wrong = compare_tokenizers(source(folder), tekken.reference, [])
    assert ("text_differs", "words and case") in kinds(wrong)
    # A file made from it has the right split, which the folder's own tokenizer has with that split too.
    mended = compare_tokenizers(source(tekken.artifact(mutations.without_bos)), source(folder), [])
    assert [kind for kind in kinds(mended) if kind[0] == "text_differs"] == []
    assert "llama_cpp_split" in warnings(mended)
    assert any("a known mistake" in finding.what for finding in mended.findings)


def test_another_merge_order_than_the_scores_is_seen(spm: Pair, tmp_path: Path) -> None:
    # The builder of this folder ranks runs of spaces by their length, which SentencePiece does not.
    result = compare_tokenizers(source(llama_2_folder(tmp_path / "model", V3, 32768)), spm.reference, [])
    assert causes(result) == [("scores_differ", "order of the scores")]
    assert {group.name for group in result.groups if group.differences} >= {"code", "white space", "long runs"}


def test_what_llama_cpps_own_converter_makes(spm: Pair, tmp_path: Path, golden: Golden) -> None:
    made = converted_vocabulary(golden, spm.folder, tmp_path / "made.gguf", 32768)
    assert kinds(compare_tokenizers(source(made), spm.reference, [])) == []
    # Known faults: see "The differences" in docs/reference/formats.md, 11.
    folder = llama_2_folder(tmp_path / "llama-2", V3, 32768)
    converted_vocabulary(golden, folder, made, 32768, part="Llama 2")
    found = kinds(compare_tokens(made, folder))
    assert found[:2] == [("scores_differ", "order of the scores"), ("special_token_split", "[INST]")]


def test_a_megatron_folder(command: Command, tmp_path: Path) -> None:
    from mconv.convert.cli.main import cli as mconv

    folder = tmp_path / "megatron"
    assert command(mconv, "hf-to-megatron", TINY, folder).code == 0
    assert compare_tokens(folder, TINY).findings == ()
    assert kinds(compare_tokens(folder, TINY, reading={"hf_config": TINY})) == []


def test_a_file_in_parts(command: Command, tmp_path: Path) -> None:
    from mconv.convert.cli.main import cli as mconv

    whole = tmp_path / "whole.gguf"
    assert command(mconv, "hf-to-gguf", TINY, whole).code == 0
    first = write_parts(whole, tmp_path / "parts", 30)
    assert len(list(first.parent.iterdir())) > 2
    for check in ("tokens", "template"):
        for artifact, reference in ((first, TINY), (first, whole), (TINY, first)):
            result = command(cli, check, artifact, "--reference", reference, "--json")
            assert (result.code, result.err) == (0, ""), (check, artifact, reference)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (mutations.shifted, [("vocabulary_shifted", "<unk>")]),
        (mutations.made_normal("[INST]"), [("special_token_split", "[INST]")]),
        (mutations.flipped_space_prefix, [("space_prefix_differs", "space")]),
        (mutations.without_bos, [("bos_differs", "bos")]),
        (mutations.with_eos, [("eos_differs", "eos")]),
        (mutations.other_eos, [("special_id_differs", "eos")]),
    ],
)
def test_what_goes_wrong_with_sentencepiece(
    spm: Pair, change: Callable[[Vocabulary], Vocabulary], expected: list[tuple[str, str]]
) -> None:
    result = spm.compare(change)
    assert [found for found in kinds(result) if found[0] != "text_differs"] == expected
    touched = {group.name for group in result.groups if group.differences}
    without_effect = {"bos_differs", "eos_differs", "special_id_differs"}
    assert (touched == set()) == (expected[0][0] in without_effect)
    if expected[0][0] == "special_token_split":
        assert touched == {"special tokens"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (mutations.shifted, [("vocabulary_shifted", "<|begin_of_text|>")]),
        (mutations.pre_tokenizer("gpt-2"), [("pre_tokenizer_differs", "pre-tokenizer")]),
        (mutations.without_merges(3, 40), [("merges_differ", "\u0120 f")]),
        (mutations.without_bos, [("bos_differs", "bos")]),
        (mutations.made_normal("<|begin_of_text|>"), [("special_token_split", "<|begin_of_text|>")]),
    ],
)
def test_what_goes_wrong_with_a_tokenizer_json(
    trained: Pair, change: Callable[[Vocabulary], Vocabulary], expected: list[tuple[str, str]]
) -> None:
    if expected[0][0] == "merges_differ":
        assert trained.reference.vocabulary.merges is not None
        expected = [("merges_differ", trained.reference.vocabulary.merges[3])]
    result = trained.compare(change)
    assert [found for found in kinds(result) if found[0] != "text_differs"] == expected


def test_merges_in_another_order(trained: Pair) -> None:
    merges = trained.reference.vocabulary.merges
    assert merges is not None
    result = trained.compare(mutations.swapped_merges(10, 200))
    assert causes(result) == [("merges_differ", merges[10])]
    assert "other merges" in {group.name for group in result.groups}
    assert (result.vocabulary.missing_merges, result.vocabulary.moved_merges) == ((), (merges[10], merges[200]))
    # Those of pairs that never meet may change places.
    result = trained.compare(mutations.swapped_merges(3, 4))
    assert (kinds(result), warnings(result)) == ([], ["merges_differ"])


def test_control_tokens_in_what_a_user_writes(trained: Pair) -> None:
    result = trained.compare(mutations.user_defined)
    assert causes(result) == []
    assert warnings(result) == ["control_token_as_text"]
    assert kinds(result) == [("text_differs", "special tokens as text")]


def test_think_as_an_ordinary_token(tekken: Pair) -> None:
    result = tekken.compare(mutations.made_normal("[THINK]"))
    assert causes(result) == [("special_token_split", "[THINK]")]
    (split,) = [finding for finding in result.findings if finding.kind == "special_token_split"]
    assert (
        split.what
        == "'[THINK]' becomes 6 tokens, '[' | 'T' | 'H' | 'IN' | 'K' | ']'; it is there as id 22, of type normal"
    )
    assert kinds(result)[1:] == [("text_differs", "special tokens")]


def test_think_as_an_unused_token(tekken: Pair) -> None:
    result = tekken.compare(mutations.without_tokens("[THINK]", "[/THINK]"))
    expected = [("token_differs", "[THINK]"), *(("special_token_split", token) for token in ("[THINK]", "[/THINK]"))]
    assert causes(result) == expected


def test_the_split_of_another_model(tekken: Pair) -> None:
    result = tekken.compare(mutations.pre_tokenizer("llama-bpe"))
    assert causes(result) == [("pre_tokenizer_differs", "pre-tokenizer")]
    # A text is only excused where its ids are exactly those of the right split in llama.cpp.
    signs = next(group for group in result.groups if group.name == "signs and line ends")
    assert signs.differences > 10


def test_two_lost_merges(tekken: Pair) -> None:
    assert causes(tekken.compare(mutations.without_merges(1, 5000))) == [("merges_differ", "\u0120 t")]


def test_a_pre_tokenizer_of_another_name_that_does_the_same(trained: Pair) -> None:
    result = trained.compare(mutations.pre_tokenizer("llama3"))
    assert (kinds(result), warnings(result)) == ([], ["pre_tokenizer_differs"])
    assert result.findings[0].what.endswith("no text was found that comes out otherwise")


def test_another_model_altogether(spm: Pair, trained: Pair) -> None:
    assert kinds(compare_tokens(trained.artifact(), spm.folder)) == [("tokenizer_model_differs", "tokenizer model")]
    found = kinds(compare_tokens(spm.artifact(), TINY))
    assert found == [("vocabulary_size", "size of the vocabulary"), ("token_differs", "<0x00>")]


def test_the_first_difference_is_shown_in_context(trained: Pair, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line\n" * 300 + "and then they'RE camelCase here\n" + "another line\n" * 300)
    artifact = source(trained.artifact(mutations.pre_tokenizer("gpt-2")))
    *_, group = compare_tokenizers(artifact, trained.reference, [text_group(text)]).groups
    assert (group.name, group.differences) == ("text: text.txt", 1)
    assert group.texts > 2
    assert group.first is not None
    assert "and then they'RE camelCase" in group.first.text
    place = group.first.text.index("'RE")
    assert group.first.text[place - 4 : place] == "they"
    assert group.first.artifact.ids != group.first.reference.ids
    assert group.first.artifact.ids[:2] == group.first.reference.ids[:2]
    tokens = trained.reference.vocabulary.tokens
    assert group.first.reference.pieces == tuple(tokens[token_id] for token_id in group.first.reference.ids)
    assert str(group.first).startswith(f"at character {group.first.position}, ")


def test_bytes_that_come_back_as_their_names(spm: Pair) -> None:
    def change(vocabulary: Vocabulary) -> Vocabulary:
        types = [TokenType.NORMAL if kind is TokenType.BYTE else kind for kind in vocabulary.types]
        return mutations.replace(vocabulary, types=types)

    result = spm.compare(change)
    assert {kind for kind, _ in kinds(result)} >= {"decode_differs"}
    assert "token_type_differs" in warnings(result)


def test_a_vocabulary_without_bytes_is_told_before_llama_cpp_ends_the_process(spm: Pair) -> None:
    def change(vocabulary: Vocabulary) -> Vocabulary:
        tokens = ["<0xZZ>" if token == "<0xE2>" else token for token in vocabulary.tokens]
        return mutations.replace(vocabulary, tokens=tokens)

    with pytest.raises(FormatError, match="no token for the byte 0xE2"):
        spm.compare(change)


def test_a_word_on_which_llama_cpp_would_die(tekken: Pair) -> None:
    vocabulary = LlamaVocabulary.load(tekken.artifact())
    assert len(vocabulary.tokenize("ab " * MAX_WORD)) > MAX_WORD
    for word in ("a" * MAX_WORD, "\u65e5" * MAX_WORD, " " * MAX_WORD, "=" * MAX_WORD):
        assert len(vocabulary.tokenize(word, add_special=False)) > 0
        with pytest.raises(SourceError, match=f"a word of {MAX_WORD + 1} characters"):
            vocabulary.tokenize(word + word[0])


def test_the_corpus_is_varied_and_the_same_every_time() -> None:
    groups = corpus()
    assert groups == corpus()
    assert len({group.name for group in groups}) == len(groups) == 20
    texts = [text for group in groups for text in group.texts]
    assert len(set(texts)) > 1500
    for text in texts:
        text.encode("utf-8")
    assert all(group.texts for group in groups)
    characters = {character for text in texts for character in text}
    assert len(characters) > 3000


def results(command: Command, *arguments: object) -> Iterator[dict]:
    result = command(cli, "tokens", *arguments, "--json")
    assert result.json["schema_version"] == 1
    yield from result.json["results"]


def test_json(command: Command, spm: Pair, tmp_path: Path) -> None:
    good = spm.artifact()
    bad = write_vocabulary(tmp_path / "bad.gguf", mutations.without_bos(spm.reference.vocabulary))
    text = tmp_path / "t.txt"
    text.write_text("hello\n")
    first, second = results(command, good, bad, "--reference", spm.folder, "--text", text)
    assert list(first) == [
        "file",
        "reference",
        "tokenizer",
        "reference_tokenizer",
        "texts",
        "tokens",
        "groups",
        "special_tokens",
        "vocabulary",
        "findings",
    ]
    assert (first["file"], first["reference"]) == (str(good), str(spm.folder))
    assert first["special_tokens"] == {"checked": 751, "wrong": 0}
    assert first["vocabulary"]["special_ids"]["bos"] == {"artifact": 1, "reference": 1}
    assert first["groups"][-1]["name"] == "text: t.txt"
    assert first["texts"] == sum(group["texts"] for group in first["groups"]) > 3000
    assert first["tokens"] == sum(group["tokens"] for group in first["groups"]) > 50000
    assert [finding["severity"] for finding in first["findings"]] == ["warn"]
    assert [finding["kind"] for finding in second["findings"] if finding["severity"] == "fail"] == ["bos_differs"]


def test_the_table_and_the_exit_code(command: Command, trained: Pair) -> None:
    good = command(cli, "tokens", trained.artifact(), "--reference", trained.folder)
    assert (good.code, good.err) == (0, "")
    assert good.out.splitlines()[0].split() == ["file", "texts", "number", "tokens", "differ", "known"]
    assert "0 of 3 special tokens are wrong" in good.out
    bad = command(cli, "tokens", trained.artifact(mutations.shifted), "--reference", trained.folder)
    assert bad.code == 1
    assert "vocabulary_shifted" in bad.out
    assert "'<|begin_of_text|>' has id 1 and not 0" in bad.err


def test_errors(command: Command, trained: Pair, tmp_path: Path) -> None:
    missing = command(cli, "tokens", tmp_path / "no.gguf", "--reference", trained.folder)
    assert (missing.code, missing.out) == (3, "")
    assert "no such file or folder" in missing.err
    config = command(cli, "tokens", trained.artifact(), "--reference", trained.folder, "--hf-config", trained.folder)
    assert (config.code, config.out) == (2, "")
    text = tmp_path / "t.txt"
    text.write_bytes(b"\xff")
    bad = command(cli, "tokens", trained.artifact(), "--reference", trained.folder, "--text", text)
    assert (bad.code, bad.out) == (3, "")
    assert "not UTF-8" in bad.err
