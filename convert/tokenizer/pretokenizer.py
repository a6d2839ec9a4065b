"""Find the pre-tokenizer of llama.cpp that does what a tokenizer.json says.

llama.cpp knows pre-tokenizers by name (`tokenizer.ggml.pre`). Its converter finds the name by hashing the ids of one
text, so an unknown vocabulary fails, and two that split this one text alike are confused: it calls a Tekken
tokenizer.json whose post-processor adds no `<s>` 'pixtral', which splits text by the rules of Llama 3. Here the name
follows from the regular expressions of the tokenizer. These are quoted in llama.cpp,
src/llama-vocab.cpp (`llm_tokenizer_bpe`), beside the equivalents that it runs.
"""

from __future__ import annotations

from typing import Any

from mconv.convert.documents import member
from mconv.convert.errors import FormatError, SourceError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}"
)

_TEKKEN = _CASED.replace("{0}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_LLAMA_3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_LLAMA_4 = _CASED.replace("{0}", _CONTRACTIONS + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_QWEN_2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES

# The steps before text is turned into bytes. The expression of GPT-2 is built into the ByteLevel step itself.
_GPT_2 = "GPT-2"
_DIGITS = "single digits"
_NAMES = {
    (_TEKKEN,): "tekken",
    (_LLAMA_3,): "llama-bpe",
    (_LLAMA_4,): "llama4",
    (_QWEN_2,): "qwen2",
    (_GPT_2,): "gpt-2",
    (_DIGITS, _GPT_2): "smollm",
}
# Other names in llama.cpp for the same pre-tokenizers (src/llama-vocab.cpp, `load`).
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "pixtral": "llama-bpe"}
_STEPS = {_DIGITS: {"type": "Digits", "individual_digits": True}}
# Pre-tokenizers with which llama.cpp does not merge a word that is a token already (`ignore_merges`).
TAKES_WHOLE_WORDS = frozenset({"tekken", "llama-bpe"})


def name_pre_tokenizer(tokenizer: dict[str, Any], tokens: list[str]) -> tuple[str, tuple[str, ...]]:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.json, and notes on what it does differently.

    Args:
        tokenizer: the content of the file.
        tokens: the text of each id.

    Raises:
        SourceError: no known pre-tokenizer of llama.cpp does the same.
        FormatError: the file is damaged.
    """
    steps = _steps(member("tokenizer.json", tokenizer, "pre_tokenizer", dict))
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise _unknown(steps)
    *splits, byte_level = steps
    cuts = [_cut(step) for step in splits]
    if byte_level.get("use_regex", True):
        cuts.append(_GPT_2)
    name = _NAMES.get(tuple(cuts))
    if name is None:
        raise _unknown(steps)
    notes = []
    if name == "llama-bpe" and _is_tekken(tokens):
        name = "tekken"
        notes.append(
            "tokenizer.json splits text as Llama 3 does, a known mistake in files made from Tekken; the GGUF file gets "
            "the split of Tekken, with which such models were trained"
        )
    if byte_level.get("add_prefix_space"):
        notes.append("tokenizer.json puts a space before a text; llama.cpp does not")
    if tokenizer.get("normalizer") is not None:
        notes.append("tokenizer.json normalizes text before splitting it; llama.cpp does not")
    return name, tuple(notes)


def pre_tokenizer_named(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json that does the same as llama.cpp's with this name.

    Raises:
        SourceError: the name is unknown.
    """
    cuts = next((cuts for cuts, known in _NAMES.items() if known == _ALIASES.get(name, name)), None)
    if cuts is None:
        raise SourceError(
            f"unknown pre-tokenizer {name!r}",
            f"known are {', '.join(sorted({*_NAMES.values(), *_ALIASES}))}; use the original checkpoint",
        )
    steps = [_STEPS.get(cut) or _split(cut) for cut in cuts if cut != _GPT_2]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": _GPT_2 in cuts}
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", **byte_level}]}


def split_in_llama_cpp(name: str) -> str | None:
    """The expression that llama.cpp splits text with, if it is a coarser form of the original, else None.

    llama.cpp's regular expressions do not count marks as letters, and know the case of ASCII letters only
    (src/llama-vocab.cpp, `llm_tokenizer_bpe`; src/unicode.cpp, `unicode_regex_split`).
    """
    cased = {"tekken": _TEKKEN, "llama4": _LLAMA_4}.get(name)
    if cased is None:
        return None
    return cased.replace(_UPPER, r"(?:(?![a-z])\p{L})").replace(_LOWER, r"(?:(?![A-Z])\p{L})")


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _is_tekken(tokens: list[str]) -> bool:
    """Whether this is Mistral's vocabulary: its special tokens, and the 256 bytes in order from id 1000.

    Older transformers gave it the split of Llama 3 (transformers tokenization_utils_tokenizers.py,
    `_patch_mistral_regex`).
    """
    return tokens[:4] == ["<unk>", "<s>", "</s>", "[INST]"] and tokens[1000:1256:255] == ["\u0100", "\u00ff"]


def _steps(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise FormatError(
            "tokenizer.json: 'pre_tokenizer' is not a list of steps", "the file is damaged; download it again"
        )
    return steps


def _cut(step: dict[str, Any]) -> str:
    """Where a step splits text: its regular expression, or one of our names."""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return _DIGITS
    pattern = step.get("pattern")
    # Every known expression matches all of a text, so isolating its matches and removing what is between them give
    # the same result.
    whole = (step.get("behavior"), bool(step.get("invert"))) in {("Isolated", False), ("Removed", True)}
    if step.get("type") == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str) and whole:
        return pattern["Regex"]
    return repr(step)


def _unknown(steps: list[dict[str, Any]]) -> SourceError:
    shown = ", then ".join(_describe(step) for step in steps) or "none"
    return SourceError(
        f"tokenizer.json: unsupported pre-tokenizer: {shown}",
        "supported are those of Tekken, Llama 3, Llama 4, Qwen 2, GPT-2 and SmolLM: "
        "compare pre_tokenizer with that of such a model",
    )


def _describe(step: dict[str, Any]) -> str:
    pattern = step.get("pattern")
    text = next(iter(pattern.values()), None) if isinstance(pattern, dict) else None
    return f"{step.get('type') or 'none'}" + (f" {text!r}" if text is not None else "")
