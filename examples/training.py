"""Training and scoring of the bundled example: windows of tokens, the loop, and the perplexity of llama-perplexity."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice

import sentencepiece
import torch
from questions import questions
from stories import texts
from transformers import MistralForCausalLM

CHAT_SHARE = 0.2
"""Share of the training windows that hold questions and answers in the chat format."""

TEXTS_PER_BLOCK = 64


def running_text(tokenizer: sentencepiece.SentencePieceProcessor, seed: int) -> Iterator[int]:
    """Ids of training texts one after the other, separated by an empty line."""
    source = texts(seed, held_out=False)
    while True:
        yield from tokenizer.encode("\n\n".join(islice(source, TEXTS_PER_BLOCK)) + "\n\n")


def chat(tokenizer: sentencepiece.SentencePieceProcessor, seed: int) -> Iterator[int]:
    """Ids of questions and answers one after the other, each from bos to eos."""
    rng = random.Random(seed)
    begin, end = tokenizer.piece_to_id("[INST]"), tokenizer.piece_to_id("[/INST]")
    for question, answer in questions(seed):
        # Runtimes differ in whether the template's space after [INST] is added to SentencePiece's own: learn both.
        asked = tokenizer.encode(rng.choice(["", " "]) + question)
        yield from (tokenizer.bos_id(), begin, *asked, end, *tokenizer.encode(answer), tokenizer.eos_id())


def windows(
    tokenizer: sentencepiece.SentencePieceProcessor, seed: int, shape: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Batches of ``shape`` (windows, tokens), int64, endlessly; each window starts with bos, and none is repeated."""
    rng = random.Random(seed)
    text, talk = running_text(tokenizer, seed), chat(tokenizer, seed)
    count, length = shape
    while True:
        sources = [talk if rng.random() < CHAT_SHARE else text for _ in range(count)]
        yield torch.tensor([[tokenizer.bos_id(), *islice(source, length - 1)] for source in sources])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A short warm-up, then linear decay to zero."""
    warmup = min(100, steps // 10 + 1)
    return peak * min((step + 1) / warmup, (steps - step) / (steps - warmup))


def train(
    model: MistralForCausalLM,
    batches: Iterator[torch.Tensor],
    steps: int,
    peak: float,
    on_step: Callable[[int, float], None],
) -> None:
    """Train ``model`` in place with AdamW on next-token prediction; ``on_step`` gets each step and its loss."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    model.train()
    for step, batch in enumerate(islice(batches, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        tokens = batch.to(model.device)
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, loss.item())


@torch.no_grad()
def perplexity(model: MistralForCausalLM, ids: list[int], context: int, bos: int) -> float:
    """Perplexity over the second half of each chunk of ``context`` tokens, its first token replaced by bos.

    Source of the definition: llama.cpp tools/perplexity/perplexity.cpp.
    """
    model.eval()
    first = context // 2
    total, scored = 0.0, 0
    for start in range(0, len(ids) - context + 1, context):
        chunk = torch.tensor([[bos, *ids[start + 1 : start + context]]], device=model.device)
        logits = model(input_ids=chunk, use_cache=False).logits[0, first:-1].float()
        total += torch.nn.functional.cross_entropy(logits, chunk[0, first + 1 :], reduction="sum").item()
        scored += context - first - 1
    return math.exp(total / scored)


def unigram_perplexity(ids: list[int]) -> float:
    """The perplexity of a model that knows only how often each token of this text occurs."""
    counts = torch.bincount(torch.tensor(ids)).double()
    shares = counts[counts > 0] / counts.sum()
    return math.exp(-(shares * shares.log()).sum().item())
