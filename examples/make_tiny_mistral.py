"""Make the bundled example: the texts, the tokenizer and the weights of a small Mistral, without any download.

    python examples/make_tiny_mistral.py

writes ``examples/tiny-mistral/`` (the layout of the Hugging Face hub, all but its README) and
``examples/tiny-mistral-eval.txt``, texts that the model was not trained on. The bundled files took 36 minutes on one
core of an AMD EPYC at 2.4 GHz that other work shared. ``--device auto`` takes a GPU if there is one; that has not been
timed.

The texts and the tokenizer are the same wherever this runs. The weights are the same on one machine with one thread;
elsewhere they differ a little, since sums of floats are taken in another order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import sentencepiece
import torch
from stories import texts
from tokenizer import train_tokenizer, write_tokenizer
from training import perplexity, train, unigram_perplexity, windows
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

HERE = Path(__file__).resolve().parent

TRAINING_SEED = 1
LONG_TRAINING_SEED = 2
EVALUATION_SEED = 3
TOKENIZER_TEXTS = 20_000
EVALUATION_BYTES = 200_000
CONTEXT = 512

# Every row that is quantized (hidden_size, heads * head_dim and intermediate_size wide) is a multiple of the 256
# weights of a super-block, and heads * head_dim is not hidden_size, as in Mistral Small.
CONFIG = MistralConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=CONTEXT,
    sliding_window=None,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)

# Short windows first: they are cheaper, and most of what can be learnt is within one text.
TRAINING = [(TRAINING_SEED, (4, CONTEXT // 2), 0.75), (LONG_TRAINING_SEED, (2, CONTEXT), 0.25)]
PEAK_LEARNING_RATE = 2e-3


def evaluation_text() -> str:
    """Held-out texts, an empty line between two of them, up to ``EVALUATION_BYTES``."""
    chosen: list[str] = []
    size = 0
    for text in texts(EVALUATION_SEED, held_out=True):
        size += len(text.encode("utf-8")) + 2
        if size > EVALUATION_BYTES:
            break
        chosen.append(text)
    return "\n\n".join(chosen) + "\n"


def untrained() -> MistralForCausalLM:
    """The model as it starts: matrices uniform, half as wide again as the variance 1 / fan-in asks for, norms at one.

    After so short a training the weights still resemble this distribution. On uniform weights the evenly spaced levels
    of Q4_K err less than the bell-shaped ones of IQ4_XS; on normal ones of this size the two are hard to tell apart.
    """
    model = MistralForCausalLM(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            bound = 1.5 * (3 / parameter.shape[1]) ** 0.5
            torch.nn.init.uniform_(parameter, -bound, bound)
    return model


def training_batches(tokenizer: sentencepiece.SentencePieceProcessor, steps: int) -> Iterator[torch.Tensor]:
    """The batches of the whole training, one phase after the other."""
    for seed, shape, share in TRAINING:
        yield from islice(windows(tokenizer, seed, shape), round(steps * share))


@click.command()
@click.option("--steps", default=900, show_default=True, help="Training steps of 1,024 tokens.")
@click.option("--device", default="auto", show_default=True, help="A torch device; auto takes a GPU if there is one.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of the training.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=HERE, show_default=False, help="Where to write.")
def main(steps: int, device: str, threads: int, output_dir: Path) -> None:
    """Write the example's model folder and its evaluation text."""
    torch.manual_seed(TRAINING_SEED)
    torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    folder = output_dir / "tiny-mistral"
    folder.mkdir(parents=True, exist_ok=True)

    seen = islice(texts(TRAINING_SEED, held_out=False), TOKENIZER_TEXTS)
    serialized = train_tokenizer((line for text in seen for line in text.split("\n")), CONFIG.vocab_size)
    write_tokenizer(serialized, folder)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    held_out = evaluation_text()
    (output_dir / "tiny-mistral-eval.txt").write_text(held_out, encoding="utf-8")
    ids = [tokenizer.bos_id(), *tokenizer.encode(held_out)]

    model = untrained().to(device)
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0 or step == steps - 1:
            click.echo(f"step {step:5d} of {steps}  loss {loss:.3f}  {time.monotonic() - started:.0f} s")

    train(model, training_batches(tokenizer, steps), steps, PEAK_LEARNING_RATE, report)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=CONFIG.bos_token_id, eos_token_id=CONFIG.eos_token_id)
    model.save_pretrained(folder)
    score = perplexity(model.float(), ids, CONTEXT, tokenizer.bos_id())
    click.echo(f"{len(ids)} held-out tokens: perplexity {score:.3f}, of a unigram model {unigram_perplexity(ids):.1f}")


if __name__ == "__main__":
    main()
