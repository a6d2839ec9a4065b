"""`mval template`: real tokenizers and templates against mistral-common and against each other, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mconv.convert.tokenizer import Vocabulary, pretokenizer
from mconv.validate.cli import cli
from mconv.validate.findings import failed
from mconv.validate.subject import Subject
from mconv.validate.template.chat import Rendered, render_conversations
from mconv.validate.template.compare import compare_conversations, compare_templates
from mconv.validate.template.conversations import CONVERSATIONS
from mconv.validate.template.prompts import mistral_prompts, mistral_template, template_prompts
from mconv.validate.template.results import TemplateResult
from mconv.validate.tokens.sources import TokenizerSource
from mconv.validate.tokens.tokenizers import artifact_tokenizer, reference_tokenizer

from support import mutations_vocabulary as mutations
from support.checkpoints_tokenizers import (
    converted_vocabulary,
    sentencepiece_folder,
    trained_folder,
    write_vocabulary,
)
from support.command_line import Command
from support.golden import Golden
from support.paths import TINY_MISTRAL as TINY
from support.small_tekken import SIZE, small_tekken

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('who is that?') }}{% endif %}"
    "{{ m.role }}:\n{{ m.content | string | trim }}{{ eos_token }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}assistant:\n{% endif %}"
)
HAVE_SPACE_AROUND = {
    "several turns", "system prompt and several turns", "tools and system prompt", "answer that ends in spaces",
    "white space",
}  # fmt: skip
EVERY = [conversation.name for conversation in CONVERSATIONS]


def source(path: Path) -> TokenizerSource:
    return Subject(path).tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer.json and a chat template."""
    folder = trained_folder(tmp_path_factory.mktemp("llama"), pretokenizer._LLAMA_3)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSource:
    """Magistral's tokenizer, without a template of its own."""
    return source(small_tekken(tmp_path_factory.mktemp("tekken"), "v13"))


def compare(
    reference: TokenizerSource, out: Path, change: Callable[[Vocabulary], Vocabulary] = lambda vocabulary: vocabulary
) -> TemplateResult:
    path = write_vocabulary(out / "artifact.gguf", change(reference.vocabulary))
    return compare_conversations(source(path), reference)


def kinds(result: TemplateResult, severity: str = "fail") -> list[tuple[str, str]]:
    return [(finding.kind, finding.subject) for finding in result.findings if finding.severity == severity]


def statuses(result: TemplateResult) -> Counter[str]:
    assert [conversation.name for conversation in result.conversations] == EVERY
    return Counter(conversation.status for conversation in result.conversations)


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_the_generated_template_of_tekken(tmp_path: Path, version: str) -> None:
    result = compare(source(small_tekken(tmp_path / "model", version)), tmp_path)
    assert result.against == "mistral-common"
    assert failed(result.findings) == []
    assert [kind for kind, _ in kinds(result, "warn")] == ["generated_template_differs"]
    known = {conversation.name for conversation in result.conversations if conversation.known}
    # mistral-common takes spaces from the end of an answer, reads no special token in a text, and is less strict
    # with who speaks first and stricter with who speaks last than its own template.
    never = {"answer that ends in spaces", "spelled special tokens", "assistant first", "assistant last"}
    assert {c.name for c in result.conversations if c.status == "differs"} == known
    # Of its own, v3 parses results that are JSON, and v11 has a place for thoughts that the encoder lacks.
    more = {
        "v3": {"tool call and result", "reasoning beside the answer", "system prompt alone"}
        | {"system prompt later", "no messages"},
        "v7": {"reasoning beside the answer"},
        "v11": {"reasoning", "reasoning beside the answer"},
    }
    assert known == never | more.get(version, set())
    assert statuses(result)["same"] == len(EVERY) - len(known) - statuses(result)["both_refuse"]


@pytest.mark.parametrize(
    ("name", "file_name", "size"),
    [
        ("tokenizer.model.v1", "tokenizer.model.v1", 32000),
        ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3", 32768),
        ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7", 32768),
    ],
)
def test_the_generated_template_of_sentencepiece(tmp_path: Path, name: str, file_name: str, size: int) -> None:
    reference = source(sentencepiece_folder(tmp_path / "model", name, size, file_name))
    made = mistral_template(tmp_path / "model" / file_name)
    with_template = mutations.template(made)
    # The converters write no template for such a folder.
    bare = compare(reference, tmp_path)
    assert (kinds(bare), kinds(bare, "warn")) == ([], [("template_missing", "default")])
    # llama.cpp puts a space after each special token, and so does the template.
    twice = compare(reference, tmp_path, with_template)
    assert kinds(twice) == []
    assert statuses(twice)["same"] == 0
    (warning,) = [finding for finding in twice.findings if finding.severity == "warn"]
    assert (warning.kind, warning.subject) == ("generated_template_differs", "one user turn")
    # Without the one of llama.cpp both are of one mind.
    once = compare(reference, tmp_path, lambda v: with_template(replace(v, add_space_prefix=False)))
    assert kinds(once) == []
    same = {conversation.name for conversation in once.conversations if conversation.status == "same"}
    assert same >= {"one user turn", "system prompt", "several turns", "begun answer", "long", "other scripts"}


def test_a_template_of_the_checkpoints_own(llama: Path, tmp_path: Path) -> None:
    result = compare(source(llama), tmp_path)
    assert (result.against, result.same_source) == ("template", True)
    assert [(finding.kind, finding.severity) for finding in result.findings] == [("template_same_source", "note")]
    found = {conversation.name: conversation for conversation in result.conversations}
    assert found["unknown role"].status == "both_refuse"
    assert found["unknown role"].error == "the chat template fails: TemplateError: who is that?"
    assert statuses(result) == {"same": len(EVERY) - 1, "both_refuse": 1}
    assert found["long"].tokens is not None
    assert found["long"].tokens > 4000
    # Spaces and comments make another text, and the same prompts.
    other = compare(source(llama), tmp_path, mutations.template("{# the same #}\n" + TEMPLATE))
    assert (other.same_source, other.findings) == (False, ())


def test_folders_and_a_gguf_file_as_the_reference(llama: Path, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "reference.gguf", source(llama).vocabulary)
    assert kinds(compare_templates(llama, path)) == []
    assert compare_templates(llama, llama).findings[0].kind == "template_same_source"
    bare = write_vocabulary(tmp_path / "bare.gguf", mutations.template(None)(source(llama).vocabulary))
    assert kinds(compare_templates(llama, bare), "warn") == [("template_unknown", "default")]
    assert compare_templates(bare, bare).findings == ()
    assert kinds(compare_templates(bare, llama)) == [("template_missing", "default")]


def test_a_right_template_in_a_tokenizer_that_puts_spaces(tmp_path: Path) -> None:
    result = compare(source(TINY), tmp_path)
    assert kinds(result) == []
    (warning,) = [finding for finding in result.findings if finding.severity == "warn"]
    assert (warning.kind, warning.subject) == ("prompt_tokens_differ", "one user turn")
    assert "it has '<s>' | '[INST]' | '\u2581' | '\u2581He'" in warning.what
    assert "and the reference '<s>' | '[INST]' | '\u2581He'" in warning.what


def test_mistral_common_alone_is_its_own_measure(tekken: TokenizerSource) -> None:
    result = compare_conversations(tekken, tekken)
    assert (result.against, result.findings) == ("mistral-common", ())
    assert set(statuses(result)) == {"same", "both_refuse"}


def test_what_llama_cpps_own_converter_writes(tmp_path: Path, golden: Golden) -> None:
    folder = small_tekken(tmp_path / "model", "v7")
    made = converted_vocabulary(golden, folder, tmp_path / "made.gguf", SIZE)
    result = compare_templates(made, folder)
    assert kinds(result) == [("template_is_a_name", "default")]
    assert "'mistral-v7-tekken'" in result.findings[0].what


def test_a_template_of_another_version(tekken: TokenizerSource, tmp_path: Path) -> None:
    assert tekken.folder is not None
    older = mistral_template(small_tekken(tmp_path / "v7", "v7") / "tekken.json")
    result = compare(tekken, tmp_path, mutations.template(older))
    found = kinds(result)
    assert {kind for kind, _ in found} == {"template_differs"}
    subjects = {subject for _, subject in found}
    assert subjects >= {"tool call and result", "several tool calls", "tools and system prompt"}
    assert not subjects & {"one user turn", "system prompt", "several turns"}
    first = next(conversation for conversation in result.conversations if conversation.name == "tool call and result")
    assert first.difference is not None
    assert first.difference.text.endswith('[TOOL_CALLS][{"name": "weather", "arguments": {"city')
    assert first.difference.reference_text.endswith('[TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 2')
    assert first.difference.artifact.pieces[:3] == ("[/INST]", "[TOOL_CALLS]", "[")
    # Told by the names that the reference has for its ids.
    assert first.difference.reference.pieces[:5] == ("[/INST]", "[TOOL_CALLS]", "we", "ather", "[ARGS]")
    assert ("template_strictness", "reasoning") in kinds(result, "warn")


def test_the_references_template_against_mistral_common(tekken: TokenizerSource, tmp_path: Path) -> None:
    assert tekken.folder is not None
    made = mistral_template(tekken.folder / "tekken.json")
    assert made is not None
    own = {"default": made.replace("[SYSTEM_PROMPT]", "[INST]")}
    reference = replace(tekken, templates=own, vocabulary=replace(tekken.vocabulary, chat_templates=own))
    result = compare(reference, tmp_path)
    assert (result.against, result.same_source, kinds(result)) == ("template", True, [])
    found = {finding.kind: finding for finding in result.findings}
    assert set(found) == {"reference_template_differs", "template_same_source"}
    different = found["reference_template_differs"]
    assert (different.severity, different.subject) == ("warn", "system prompt")
    assert "spelled special tokens" not in different.what
    assert "system prompt and several turns" in different.what


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [("template_missing", "default")]),
        ("mistral-v7-tekken", [("template_is_a_name", "default")]),
        (mutations.LOOPING, [("template_error", EVERY[0]), ("template_error", EVERY[1])]),
        (mutations.RAISING, [("template_error", EVERY[0])]),
        ("{% if %}", [("template_error", EVERY[0])]),
        ("{{ messages.nothing.deeper }}", [("template_error", EVERY[0])]),
        ("{{ 'a' * 100000 }}", [("template_error", EVERY[0]), ("template_error", "begun answer")]),
        (
            TEMPLATE.replace("| trim", ""),
            [("template_differs", name) for name in EVERY if name in HAVE_SPACE_AROUND],
        ),
        (
            TEMPLATE.replace("{{ bos_token }}", ""),
            [("template_differs", name) for name in EVERY if name != "unknown role"],
        ),
    ],
)
def test_what_goes_wrong(llama: Path, tmp_path: Path, template: str | None, expected: list[tuple[str, str]]) -> None:
    result = compare(source(llama), tmp_path, lambda v: mutations.without_bos(mutations.template(template)(v)))
    assert kinds(result) == expected
    if expected[0][0] != "template_differs":
        assert "same" not in statuses(result)
    for finding in failed(result.findings):
        assert finding.what.startswith(f"{finding.subject}: ")


def test_one_that_is_stricter_and_one_that_is_laxer(llama: Path, tmp_path: Path) -> None:
    laxer = TEMPLATE.replace("'tool']", "'tool', 'poet']")
    result = compare(source(llama), tmp_path, mutations.template(laxer))
    assert (kinds(result), kinds(result, "warn")) == ([], [("template_strictness", "unknown role")])
    assert result.findings[0].what.endswith("rejects it: the chat template fails: TemplateError: who is that?")
    stricter = TEMPLATE.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if messages and messages[0].role == 'assistant' %}"
        "{{ raise_exception('the user comes first') }}{% endif %}",
    )
    result = compare(source(llama), tmp_path, mutations.template(stricter))
    assert (kinds(result), kinds(result, "warn")) == ([], [("template_strictness", "assistant first")])
    assert result.findings[0].what.endswith("TemplateError: the user comes first")
    # Who refuses what everybody says is broken.
    refusing = compare(source(llama), tmp_path, mutations.template(stricter.replace("'assistant' %}{{", "'user' %}{{")))
    assert kinds(refusing) == [("template_error", EVERY[0])]


def test_named_templates(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | tojson }}" + TEMPLATE)
    reference = source(folder)
    right = compare(reference, tmp_path)
    assert kinds(right) == []
    assert len(right.conversations) == 2 * len(EVERY)
    assert right.conversations[len(EVERY)].name == "tool_use: one user turn"
    only = replace(reference.vocabulary, chat_templates={"default": TEMPLATE, "rag": TEMPLATE})
    lost = compare(reference, tmp_path, lambda _: only)
    assert kinds(lost) == [("template_missing", "tool_use")]
    assert kinds(lost, "warn") == [("template_extra", "rag")]
    swapped = replace(reference.vocabulary, chat_templates={"default": TEMPLATE, "tool_use": TEMPLATE})
    wrong = compare(reference, tmp_path, lambda _: swapped)
    assert kinds(wrong)[0] == ("template_differs", "tool_use: one user turn")


def test_prompts_are_those_of_transformers(llama: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama, local_files_only=True)
    with artifact_tokenizer(source(llama)) as ours:
        prompts = template_prompts(TEMPLATE, ours, CONVERSATIONS)
    checked = 0
    for conversation, prompt in zip(CONVERSATIONS, prompts, strict=True):
        if prompt.ids is None or not conversation.messages:
            continue
        expected = tokenizer.apply_chat_template(
            json.loads(json.dumps(conversation.messages)),
            tools=json.loads(json.dumps(conversation.tools)),
            add_generation_prompt=not conversation.continues,
            continue_final_message=conversation.continues,
            return_dict=False,
        )
        assert prompt.ids == expected, conversation.name
        checked += 1
    assert checked > 25


def test_a_begun_answer_ends_where_it_was_left(tekken: TokenizerSource) -> None:
    assert tekken.folder is not None
    begun = [conversation for conversation in CONVERSATIONS if conversation.continues]
    (ours,) = mistral_prompts(tekken.folder / "tekken.json", begun)
    assert ours.text == "<s>[INST]A poem, please[/INST]Roses are"
    with reference_tokenizer(tekken) as tokenizer:
        made = mistral_template(tekken.folder / "tekken.json")
        assert made is not None
        assert template_prompts(made, tokenizer, begun) == [ours]
        (lost,) = template_prompts("{{ bos_token }}", tokenizer, begun)
    assert (lost.ids, lost.error) == (None, "the chat template leaves out the answer that was begun")


def test_one_conversation_that_does_not_end_leaves_those_before_it() -> None:
    template = "{% if loops %}" + mutations.LOOPING + "{% endif %}{{ name }}"
    conversations: list[dict[str, Any]] = [{"name": "a"}, {"name": "b", "loops": True}, {"name": "c"}]
    first, second, third = render_conversations(template, conversations)
    assert first == Rendered(text="a")
    assert (second.text, second.error, second.refused) == (None, "it takes too much time or memory", False)
    assert third.error == "it takes too much time or memory with the conversation before"


def test_dates_and_marks_for_training_and_refusals() -> None:
    (date,) = render_conversations("{{ strftime_now('%d %B %Y') }}", [{}], "2025-01-02T12:00:00")
    assert date == Rendered(text="02 January 2025")
    (marked,) = render_conversations("a{% generation %}b{{ c }}{% endgeneration %}d", [{"c": "x"}])
    assert marked == Rendered(text="abxd")
    refused, broken = render_conversations("{{ raise_exception('no') if no else nothing.x }}", [{"no": True}, {}])
    assert refused == Rendered(error="TemplateError: no", refused=True)
    assert broken.error.startswith("UndefinedError")
    assert not broken.refused


def test_json(command: Command, llama: Path, tmp_path: Path) -> None:
    good = write_vocabulary(tmp_path / "good.gguf", source(llama).vocabulary)
    bad = write_vocabulary(tmp_path / "bad.gguf", mutations.template("chatml")(source(llama).vocabulary))
    result = command(cli, "template", good, bad, "--reference", llama, "--json")
    assert result.code == 1
    assert "bad.gguf: template_is_a_name: default: the chat template is the text 'chatml'" in result.err
    assert result.json["schema_version"] == 1
    first, second = result.json["results"]
    assert list(first) == ["file", "reference", "against", "same_source", "conversations", "findings"]
    assert first["conversations"][0] == {
        "name": "one user turn",
        "status": "same",
        "tokens": first["conversations"][0]["tokens"],
        "difference": None,
        "error": "",
        "reference_error": "",
        "known": False,
    }
    assert first["conversations"][0]["tokens"] > 10
    assert {conversation["status"] for conversation in second["conversations"]} == {"error"}
    assert [finding["kind"] for finding in second["findings"]] == ["template_is_a_name"]


def test_the_table(command: Command, llama: Path, tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "m.gguf", mutations.template(TEMPLATE.replace("assistant:", "bot:"))(source(llama).vocabulary)
    )
    result = command(cli, "template", path, "--reference", llama)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0].split() == ["file", "conversation", "status", "tokens", "how"]
    assert "differs" in lines[1]
    assert any("template_differs" in line for line in lines)
    good = write_vocabulary(tmp_path / "good.gguf", source(llama).vocabulary)
    fine = command(cli, "template", good, "--reference", llama)
    assert (fine.code, fine.err) == (0, "")
    assert f"{good} against {llama} (template)" in fine.out
