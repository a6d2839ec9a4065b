"""`mval kl` against llama-perplexity --kl-divergence."""

from __future__ import annotations

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
from support.golden import Golden


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    """The bundled example as Q4_K_M."""
    path = folder / "quantized.gguf"
    mquant.main([str(EXAMPLE), "--type", "Q4_K_M", "--output", str(path)], standalone_mode=False)
    return path


CHUNKS = 24


@pytest.fixture(scope="module")
def ours(folder: Path, quantized: Path, example: Path) -> Path:
    """What `mval kl` keeps of the BF16 file."""
    path = folder / "ours.kld"
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS, save_logits=path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path, llama_perplexity: list[str], example: Path) -> Path:
    """What llama-perplexity keeps of it."""
    path = folder / "theirs.kld"
    options = ["-f", str(EVALUATION), "-c", "512", "--chunks", str(CHUNKS), "-t", "1", "--save-all-logits", str(path)]
    subprocess.run([*llama_perplexity, "-m", str(example), *options], check=True, capture_output=True)
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


def printed(program: list[str], model: Path, logits: Path) -> dict[str, tuple[float, float]]:
    """The table of llama-perplexity --kl-divergence: number and half of its last digit, in the units of ours."""
    base = ["--kl-divergence", "--kl-divergence-base", str(logits)]
    arguments = [*program, "-m", str(model), *base, "-c", "512", "-t", "1"]
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


@pytest.fixture
def table(quantized: Path, golden: Golden, request: pytest.FixtureRequest) -> dict[str, tuple[float, float]]:
    """What llama-perplexity prints for the quantized file, with the logits that it kept itself."""

    def run() -> dict[str, float]:
        program, theirs = (request.getfixturevalue(name) for name in ("llama_perplexity", "theirs"))
        found = printed(program, quantized, theirs)
        values = {name: value for name, (value, _) in found.items()}
        return values | {f"{name} half": half for name, (_, half) in found.items()}

    said = golden(run, EVALUATION, EXAMPLE, tolerance=1e-4)
    return {name: (said[name], said[f"{name} half"]) for name in said if not name.endswith(" half")}


@pytest.mark.oracle
def test_llama_perplexity_on_its_own_file(
    table: dict[str, tuple[float, float]], quantized: Path, golden: Golden, request: pytest.FixtureRequest
) -> None:
    """Every number, to one in the last digit that is printed: the logits and the file are the same.

    Where llama-perplexity is not run, the file is ours, which it reads as its own.
    """
    kept = request.getfixturevalue("theirs" if golden.runs_peers else "ours")
    with open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(LogitsFile(kept), [artifact], [])
    found = numbers(result)
    # All but the correlation, of which three digits are printed under a name of its own, and the number of tokens.
    assert found.keys() - table.keys() == {"correlation", "tokens", "kl.p75", "kl.p25"}
    for name, (value, half) in table.items():
        # Quantiles are interpolated in float32 there.
        assert found[name] == pytest.approx(value, abs=half + 5e-7 + 5e-5 * abs(value)), name


@pytest.mark.oracle
def test_llama_perplexity_in_lock_step(table: dict[str, tuple[float, float]], quantized: Path, example: Path) -> None:
    """The reference's logits as they are, not as the file rounds them: the same to four digits and more."""
    with open_model(example, 1) as reference, open_model(quantized, 1) as artifact:
        (result,) = measure_divergence(reference, [artifact], [EVALUATION], limit=CHUNKS)
    found = numbers(result)
    for name in ("kl.mean", "perplexity", "reference_perplexity", "ratio", "delta_p_rms", "same_top"):
        value, half = table[name]
        assert found[name] == pytest.approx(value, rel=1e-4, abs=half), name
    for name, (value, half) in table.items():
        # What the file rounds by, up to 1e-4 of a token's log-probability, moves the quantiles a little.
        assert found[name] == pytest.approx(value, abs=half + 6e-5 + 5e-4 * abs(value)), name


@pytest.mark.oracle
def test_llama_perplexity_reads_ours(llama_perplexity: list[str], theirs: Path, ours: Path, quantized: Path) -> None:
    assert printed(llama_perplexity, quantized, ours) == printed(llama_perplexity, quantized, theirs)
    mine, other = ours.read_bytes(), theirs.read_bytes()
    assert len(mine) == len(other)
    # The lowest log-probability of a row may differ in its last bit: it is a logarithm of another library's sum.
    assert (np.frombuffer(mine, np.uint8) != np.frombuffer(other, np.uint8)).mean() < 1e-5
