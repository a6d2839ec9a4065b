"""`mval generate`: models that follow a script, templates of every temper, and the flags."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.errors import FormatError, UsageError
from mconv.inference import streamed_weights
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.validate.cli import cli
from mconv.validate.generation.answers import answer_prompts
from mconv.validate.generation.flags import find_flags, loop_period
from mconv.validate.generation.generate import Agreement, Generation, _agree, generate
from mconv.validate.generation.sampling import SamplingSettings, sampler
from mconv.validate.subject import Subject
from mconv.validate.template.chat import render_chat

from support import tiny_gguf
from support.command_line import Command
from support.paths import TINY_MISTRAL as EXAMPLE
from support.tiny_gguf import byte, control

TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"

USER = [{"role": "user", "content": "hi"}]


def script(*tokens: int) -> dict[int, int]:
    """Each token is followed by the next, the last one by EOS."""
    return dict(itertools.pairwise([*tokens, tiny_gguf.EOS]))


def answers(path: Path, prompt: str = "hi", max_tokens: int = 50) -> list[Generation]:
    with LlamaCppModel(path, threads=1) as runtime:
        return generate(runtime, prompt, max_tokens)


def test_with_the_template_and_without(tmp_path: Path) -> None:
    steps = script(control("[/INST]"), byte("y"), byte("e"), byte("s")) | script(byte("i"), byte("!"))
    chat, plain = answers(tiny_gguf.write_script(tmp_path / "m.gguf", steps, TEMPLATE))
    assert (chat.template, chat.text, chat.tokens, chat.finish_reason, chat.flags) == (True, "yes", 3, "stop", [])
    assert (plain.template, plain.text, plain.tokens, plain.finish_reason, plain.flags) == (False, "!", 1, "stop", [])
    assert chat.tokens_per_second is not None
    assert chat.tokens_per_second > 0


def test_a_file_without_a_template_gives_one_answer(tmp_path: Path) -> None:
    (only,) = answers(tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("!"))))
    assert (only.template, only.text) == (False, "!")


def test_a_spelled_control_token_is_one_token_of_the_prompt(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(control("[/INST]"), byte("y")))
    (only,) = answers(path, "[INST]hi[/INST]")
    assert only.text == "y"


def test_the_limit_ends_an_answer(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(*(byte(c) for c in "iabcdef")))
    (cut,) = answers(path, max_tokens=3)
    (whole,) = answers(path, max_tokens=6)
    assert (cut.text, cut.tokens, cut.finish_reason) == ("abc", 3, "length")
    assert (whole.text, whole.finish_reason) == ("abcdef", "length")


def test_a_prompt_longer_than_a_batch(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("z"), byte("!")))
    (only,) = answers(path, "a" * 1200 + "z")
    assert only.text == "!"


def test_a_prompt_without_tokens(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", {}, adds_bos=False)
    with pytest.raises(UsageError, match="the prompt has no tokens"):
        answers(path, "")


def test_an_empty_prompt_is_bos(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", {tiny_gguf.BOS: byte("a")})
    (only,) = answers(path, "")
    assert only.text == "a"
    # A prompt that is BOS alone gets no second one.
    (same,) = answers(path, "<s>")
    assert same.text == "a"


@pytest.mark.parametrize(
    ("steps", "flags"),
    [
        (script(byte("i")), ["empty"]),
        (script(byte("i"), byte(" "), byte("\n")), ["empty"]),
        (script(byte("i"), control("[THINK]"), byte("a")), ["unfinished_think"]),
        (script(byte("i"), control("[THINK]"), byte("a"), control("[/THINK]"), byte("b")), []),
        (script(byte("i"), byte("a"), control("[INST]"), byte("b")), ["control_tokens"]),
        (script(byte("i"), *(byte(c) for c in "ab</s")) | {byte("s"): byte(">")}, ["control_tokens"]),
        ({byte("i"): byte("a"), byte("a"): byte("b"), byte("b"): byte("a")}, ["loop"]),
        ({byte("i"): control("[THINK]"), control("[THINK]"): control("[THINK]")}, ["unfinished_think", "loop"]),
    ],
)
def test_flags_of_real_answers(tmp_path: Path, steps: dict[int, int], flags: list[str]) -> None:
    (only,) = answers(tiny_gguf.write_script(tmp_path / "m.gguf", steps))
    assert only.flags == flags


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([], 0),
        ([5] * 23, 0),
        ([5] * 24, 1),
        ([1, 2, 3, *[5] * 24], 1),
        ([*[5] * 24, 1], 0),
        ([1, 2, 3] * 8, 3),
        ([9, 8, *[1, 2, 3] * 8, 1], 3),
        (list(range(10)) * 3, 0),
        (list(range(10)) * 4, 10),
        (list(range(1000)) * 4, 1000),
        ([7, *list(range(1000)) * 4][:4000], 0),
        (list(range(100)), 0),
    ],
)
def test_loops(tokens: Sequence[int], period: int) -> None:
    assert loop_period(tokens) == period


def test_loops_take_linear_time_in_the_worst_case() -> None:
    # Forty thousand tokens that are nearly, and everywhere, a loop: a quadratic search would need minutes.
    assert loop_period([1, *[2] * 20_000] * 2) == 1
    assert loop_period([*[2] * 20_000, 1] * 2) == 0


def test_the_prompt_may_open_the_thinking() -> None:
    assert find_flags("[/INST][THINK]", "so", [1], []) == ["unfinished_think"]
    assert find_flags("[/INST][THINK]", "so[/THINK]yes", [1], []) == []
    assert find_flags("[SYSTEM_PROMPT]use [THINK]x[/THINK][/SYSTEM_PROMPT]", "yes", [1], []) == []


def test_a_template_has_what_templates_expect() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n  {% if loop.index > 9 %}{% break %}{% endif %}\n"
        "{{ m | tojson }}{% endfor %}{{ strftime_now('%Y') | length }}{{ add_generation_prompt }}{{ eos_token }}"
    )
    text = render_chat(template, [{"role": "user", "content": "<\u00e9>"}], "<s>", "</s>")
    assert text == "<s>" + json.dumps({"role": "user", "content": "<\u00e9>"}, ensure_ascii=False) + "4True</s>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("mistral-v7-tekken", "it is the text 'mistral-v7-tekken', not Jinja"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0].nothing.deeper }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ 'a' * 20000000 }}", "it gives 20000000 characters"),
        ("{{ 'a' * 100000000000 }}", "MemoryError"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too much time"),
    ],
)
def test_a_template_that_fails_says_why(template: str, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        render_chat(template, USER, "<s>", "</s>")
    assert reason in caught.value.what


def test_a_template_that_fails_leaves_the_plain_answer(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("!")), "{{ raise_exception('no') }}")
    chat, plain = answers(path)
    assert (chat.text, chat.tokens, chat.finish_reason, chat.flags) == ("", 0, "error", ["template_error"])
    assert chat.error == "the chat template fails: TemplateError: no"
    assert plain.text == "!"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 1024 }}", f"gives {tiny_gguf.CONTEXT + 1} tokens, but the context of the model is"),
        ("{# nothing #}", "gives 0 tokens"),
    ],
)
def test_a_template_that_no_context_holds_leaves_the_plain_answer(tmp_path: Path, template: str, reason: str) -> None:
    steps = script(byte("i"), byte("!"))
    path = tiny_gguf.write_script(tmp_path / "m.gguf", steps, template, adds_bos="nothing" not in template)
    chat, plain = answers(path)
    assert (chat.template, chat.finish_reason, chat.flags) == (True, "error", ["template_error"])
    assert chat.error is not None
    assert reason in chat.error
    assert plain.text == "!"


def test_a_template_may_fill_the_context(tmp_path: Path) -> None:
    template = "{{ 'a' * 1022 }}z"
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("z"), byte("!")), template)
    chat, _ = answers(path)
    assert (chat.text, chat.flags) == ("!", [])


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_an_answer(tmp_path: Path, weight: float) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("a"), byte("b")))
    embedding = next(tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name == "token_embd.weight")
    embedding.data[byte("a")] = weight
    (only,) = answers(path)
    # The model writes "a", and breaks on reading it back.
    assert (only.text, only.finish_reason, only.flags) == ("a", "error", ["not_finite"])


def test_json(command: Command, tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("!")), TEMPLATE)
    result = command(cli, "generate", path, path, "--prompt", "hi", "--prompt", "i", "--max-tokens", 5, "--json")
    assert result.code == 0
    assert list(result.json) == ["schema_version", "results"]
    rows = result.json["results"]
    expected = [(prompt, template) for prompt in ("hi", "i") for template in (True, False)]
    assert [(row["prompt"], row["template"]) for row in rows] == expected * 2
    assert list(rows[0])[:4] == ["file", "prompt", "template", "text"]
    assert set(rows[0]) >= {"tokens", "tokens_per_second", "flags", "finish_reason", "error"}


def test_the_table_prints_no_escape_sequences(command: Command, tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("\x1b"), byte("\n"), byte("c")))
    result = command(cli, "generate", path, "--prompt", "hi")
    assert result.code == 0
    assert len(result.out.splitlines()) == 2
    assert r"\x1b\nc" in result.out


def test_the_error_of_a_bad_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    result = command(cli, "generate", path, "--prompt", "hi", "--json")
    assert (result.code, result.out) == (3, "")
    assert "past the end of the file" in result.err


LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (SamplingSettings(), {0: 0.1, 1: 0.4, 2: 0.05, 3: 0.3, 4: 0.15}),
        (SamplingSettings(top_k=2), {1: 4 / 7, 3: 3 / 7}),
        (SamplingSettings(top_p=0.75), {1: 0.4 / 0.85, 3: 0.3 / 0.85, 4: 0.15 / 0.85}),
        (SamplingSettings(min_p=0.5), {1: 4 / 7, 3: 3 / 7}),
        (SamplingSettings(temperature=0.5, top_k=3), {1: 0.16 / 0.2725, 3: 0.09 / 0.2725, 4: 0.0225 / 0.2725}),
        (SamplingSettings(temperature=0.0), {1: 1.0}),
    ],
    ids=["all", "top k", "top p", "min p", "temperature", "none"],
)
def test_tokens_are_drawn_with_their_probabilities(settings: SamplingSettings, kept: dict[int, float]) -> None:
    choose = sampler(settings, seed=5)
    draws = np.bincount([choose(LOGITS) for _ in range(8000)], minlength=5) / 8000
    for token in range(5):
        assert draws[token] == pytest.approx(kept.get(token, 0.0), abs=0.02 if token in kept else 0)


def test_a_seed_draws_the_same_again() -> None:
    first, second, other = (sampler(SamplingSettings(), seed) for seed in (3, 3, 4))
    drawn = [[choose(LOGITS) for _ in range(50)] for choose in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_drawn_answers_follow_what_the_file_recommends(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("!"), byte("?")))
    with LlamaCppModel(path, threads=1) as runtime:
        assert [made.sampling for made in generate(runtime, "hi", 5, samples=2)] == [None]
    recommend = {"general.sampling.temp": 0.7, "general.sampling.top_p": 0.95, "general.sampling.top_k": 40}
    path = tiny_gguf.write_script(tmp_path / "r.gguf", script(byte("i"), byte("!"), byte("?")), metadata=recommend)
    with LlamaCppModel(path, threads=1) as runtime:
        greedy, *drawn = generate(runtime, "hi", 5, samples=2)
    assert (greedy.sampling, greedy.seed) == (None, None)
    assert [made.seed for made in drawn] == [0, 1]
    assert drawn[0].sampling is not None
    assert drawn[0].sampling.to_json() == pytest.approx({"temperature": 0.7, "top_p": 0.95, "top_k": 40})
    # The script leaves no doubt, so drawing changes nothing.
    assert {made.text for made in (greedy, *drawn)} == {"!?"}


def test_a_reference_agrees_up_to_the_first_token_that_differs(tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("a"), byte("b"), byte("c")))
    other = tiny_gguf.write_script(tmp_path / "o.gguf", script(byte("i"), byte("a"), byte("b"), byte("x")))
    with LlamaCppModel(path, threads=1) as runtime, LlamaCppModel(other, threads=1) as reference:
        (same,) = generate(runtime, "hi", 10, reference=runtime)
        (parted,) = generate(runtime, "hi", 10, reference=reference)
    assert same.text == "abc"
    # The token that ends the answer counts too.
    assert same.agreement == Agreement(str(path), 4, 4)
    assert parted.agreement == Agreement(str(other), 2, 4)
    assert same.seconds_to_first_token is not None


def test_a_token_that_the_reference_has_not_is_where_they_part() -> None:
    class Small:
        path, vocab_size = Path("small"), 5

        def likeliest(self, tokens: np.ndarray, first: int) -> np.ndarray:
            assert tokens.max() < self.vocab_size
            return np.array([4, 1, 2, 3])[: len(tokens)][first:]

    written = [1, 2, 7, 1]
    model: Any = Small()
    assert _agree(model, np.array([0, 4]), written, None) == Agreement("small", 2, 4)


def test_what_the_reference_does_too_is_a_note(tmp_path: Path) -> None:
    odd = script(byte("i"), byte("a"), control("[INST]"))
    path = tiny_gguf.write_script(tmp_path / "m.gguf", odd)
    other = tiny_gguf.write_script(tmp_path / "o.gguf", script(byte("i"), byte("a")))
    same = Path(shutil.copy(path, tmp_path / "same.gguf"))
    for reference, severity in ((same, "note"), (other, "warn")):
        subjects = [Subject(path, threads=1) for path in (path, reference)]
        answer, of_reference = answer_prompts(subjects[:1], ["hi"], 10, reference=subjects[1])
        assert (answer.file, of_reference.file) == (path, reference)
        assert of_reference.made.agreement is None
        assert answer.made.agreement is not None
        assert answer.made.agreement.flags == of_reference.made.flags
        assert [(finding.kind, finding.severity) for finding in answer.findings] == [("control_tokens", severity)]


def test_folders_write_what_their_conversion_writes(command: Command, tmp_path: Path) -> None:
    artifact, megatron = tmp_path / "model.gguf", tmp_path / "megatron"
    assert command(mconv, "hf-to-gguf", EXAMPLE, artifact).code == 0
    assert command(mconv, "hf-to-megatron", EXAMPLE, megatron).code == 0
    options = ("--prompt", "What is the capital of France?", "--max-tokens", 12, "--hf-config", EXAMPLE, "--json")
    result = command(cli, "generate", artifact, EXAMPLE, megatron, "--reference", EXAMPLE, *options)
    assert result.code == 0, result.err
    rows = result.json["results"]
    texts = [[row["text"] for row in rows[start : start + 2]] for start in range(0, len(rows), 2)]
    # The reference is one of the artifacts, whose answers need not be there twice.
    assert len(texts) == 3
    assert texts[0] == texts[1] == texts[2]
    assert all(row["tokens"] > 5 and row["tokens_per_second"] > 0 for row in rows)
    agreements = [row["agreement"] for row in rows]
    assert all(each["common_prefix"] == each["tokens"] > 5 for each in agreements)


def test_a_folder_draws_with_the_settings_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in EXAMPLE.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 3}')
    *_, drawn = answer_prompts([Subject(folder, threads=1)], ["Once upon a time"], 4, samples=1)
    assert drawn.made.sampling == SamplingSettings(temperature=0.5, top_k=3)
    assert drawn.made.tokens == 4


def test_a_folder_that_has_no_room_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    artifact = tmp_path / "model.gguf"
    assert command(mconv, "hf-to-gguf", EXAMPLE, artifact).code == 0
    monkeypatch.setattr(streamed_weights, "available_memory", lambda: 1 << 20)
    options = ("--prompt", "Once", "--max-tokens", 3, "--json")
    result = command(cli, "generate", artifact, EXAMPLE, "--reference", EXAMPLE, *options)
    assert result.code == 0
    assert [row["file"] for row in result.json["results"]] == [str(artifact)] * 2
    assert all(row["agreement"]["common_prefix"] == 3 for row in result.json["results"])
    assert all(row["agreement"]["flags"] is None for row in result.json["results"])
    assert result.err.count(f"note: {EXAMPLE}: skipped answers, since the model is too large for the free memory") == 2


def test_another_vocabulary_is_refused(command: Command, tmp_path: Path) -> None:
    path = tiny_gguf.write_script(tmp_path / "m.gguf", script(byte("i"), byte("a")))
    for artifact, reference in ((path, EXAMPLE), (EXAMPLE, path)):
        result = command(cli, "generate", artifact, "--reference", reference, "--prompt", "hi")
        assert (result.code, "a vocabulary of 2048 tokens" in result.err) == (2, True)
