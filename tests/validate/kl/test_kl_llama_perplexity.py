"""`mval kl` against llama-perplexity --kl-divergence."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mconv.inference.open_model import open_model
from mconv.quantize.cli import cli as mquant
from mconv.validate.divergence.lockstep import measure_divergence
from mconv.validate.divergence.logits_file import LogitsFile

from support.by_definition import EVALUATION, EXAMPLE, numbers


@pytest.fixture(scope="module")
def llama_perplexity() -> str:
    found = os.environ.get("MCONV_LLAMA_PERPLEXITY")
    if not found:
        pytest.skip("MCONV_LLAMA_PERPLEXITY does not name the llama-perplexity of the installed llama.cpp")
    return found


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    """The bundled example as Q4_K_M."""
    path = folder / "quantized.gguf"
    mquant.main([str(EXAMPLE), "--type", "Q4_K_M", "--output", str(path)], standalone_mode=False)
    return path


CHUNKS = 24


@pytest.fixture(scope="module")
def saved(folder: Path, llama_perplexity: str, example: Path) -> Path:
    """What llama-perplexity keeps of the BF16 file."""
    path = folder / "saved.kld"
    options = ["-f", EVALUATION, "-c", "512", "--chunks", str(CHUNKS), "-t", "1", "--save-all-logits", path]
    subprocess.run([llama_perplexity, "-m", example, *options], check=True, capture_output=True)
    return path


ROWS = {
    "Mean PPL(Q)": "perplexity",
    "Mean PPL(base)": "reference_perplexity",
    "Mean ln(PPL(Q)/PPL(base))": "ln_ratio",
    "Mean PPL(Q)/PPL(base)": "ratio",
    "Mean PPL(Q)-PPL(base)": "difference",
    "Mean KLD": "kl.mean",
    "Maximum KLD": "kl.max",
    "Median KLD": "kl.median",
    "Minimum KLD": "kl.min",
    "Mean \u0394p": "delta_p.mean",
    "Maximum \u0394p": "delta_p.max",
    "Median \u0394p": "delta_p.median",
    "Minimum \u0394p": "delta_p.min",
    "RMS \u0394p": "delta_p_rms",
    "Same top p": "same_top",
}
PERCENTILES = {"99.9": "p99_9", "99.0": "p99", "95.0": "p95", "90.0": "p90", "75.0": "p75", "25.0": "p25"}
PERCENTILES |= {"10.0": "p10", "5.0": "p5", "1.0": "p1", "0.1": "p0_1"}
ROWS |= {f"{percent}% KLD": f"kl.{name}" for percent, name in PERCENTILES.items()}
ROWS |= {f"{percent}% \u0394p": f"delta_p.{name}" for percent, name in PERCENTILES.items()}


def printed(binary: str, model: Path, logits: Path) -> dict[str, tuple[float, float]]:
    """The table of llama-perplexity --kl-divergence: number and half of its last digit, in the units of ours."""
    arguments = [binary, "-m", model, "--kl-divergence", "--kl-divergence-base", logits, "-c", "512", "-t", "1"]
    for _ in range(30):  # it can exit before its log is written
        done = subprocess.run(arguments, capture_output=True, check=True)
        table = (done.stdout + done.stderr).decode().partition("====== Perplexity statistics ======")[2]
        if "Same top p" in table:
            break
    found = {}
    for line in table.splitlines():
        told = re.fullmatch(r"(\S.*?) *: *(-?\d+\.(\d+))(?: \u00b1 *(\d+\.(\d+)))?( ?%)?", line.strip())
        if told is None or (name := ROWS.get(re.sub(" +", " ", told[1]))) is None:
            continue
        unit = 0.01 if told[6] else 1
        found[name] = (unit * float(told[2]), unit * 0.5 * 10 ** -len(told[3]))
        if told[4]:
            error = f"{name}_standard_error" if "." not in name else f"{name.split('.')[0]}.standard_error"
            found[error] = (unit * float(told[4]), unit * 0.5 * 10 ** -len(told[5]))
    return found


def test_llama_perplexity_on_its_own_file(llama_perplexity: str, saved: Path, quantized: Path) -> None:
    """Every number, to one in the last digit that is printed: the logits and the file are the same."""
    expected = printed(llama_perplexity, quantized, saved)
    with open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(LogitsFile(saved), [artifact], [])
    found = numbers(result)
    # All but the correlation, of which three digits are printed under a name of its own, and the number of tokens.
    assert found.keys() - expected.keys() == {"correlation", "tokens", "kl.p75", "kl.p25"}
    for name, (value, half) in expected.items():
        # Quantiles are interpolated in float32 there.
        assert found[name] == pytest.approx(value, abs=half + 5e-7 + 5e-5 * abs(value)), name


def test_llama_perplexity_in_lock_step(llama_perplexity: str, saved: Path, quantized: Path, example: Path) -> None:
    """The reference's logits as they are, not as the file rounds them: the same to four digits and more."""
    expected = printed(llama_perplexity, quantized, saved)
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS)
    found = numbers(result)
    for name in ("kl.mean", "perplexity", "reference_perplexity", "ratio", "delta_p_rms", "same_top"):
        value, half = expected[name]
        assert found[name] == pytest.approx(value, rel=1e-4, abs=half), name
    for name, (value, half) in expected.items():
        # What the file rounds by, up to 1e-4 of a token's log-probability, moves the quantiles a little.
        assert found[name] == pytest.approx(value, abs=half + 6e-5 + 5e-4 * abs(value)), name


def test_llama_perplexity_reads_ours(
    llama_perplexity: str, saved: Path, quantized: Path, example: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.kld"
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS, save_logits=ours)
    assert printed(llama_perplexity, quantized, ours) == printed(llama_perplexity, quantized, saved)
    mine, theirs = ours.read_bytes(), saved.read_bytes()
    assert len(mine) == len(theirs)
    # The lowest log-probability of a row may differ in its last bit: it is a logarithm of another library's sum.
    assert (np.frombuffer(mine, np.uint8) != np.frombuffer(theirs, np.uint8)).mean() < 1e-5
