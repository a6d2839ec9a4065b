"""llama.cpp behind `LlamaCppModel`: what it says of a file, what it refuses, how its threads wait, and the AMX trap."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from mconv.convert.containers.gguf import encode_header, read_gguf
from mconv.convert.errors import FormatError, MconvError, SourceError
from mconv.convert.model.metadata import Value, float32, string, uint32
from mconv.convert.model.spec import MAX_LAYERS
from mconv.convert.reporting import Listener, listening
from mconv.inference import amx
from mconv.inference.header import check_header, read_header
from mconv.inference.llama_cpp_model import LlamaCppModel
from mconv.inference.openmp import SPIN_COUNT

from support import tiny_gguf

KILLED = (sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
CLEAN = (sys.executable, "-c", "")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_noise(tmp_path_factory.mktemp("noise") / "noise.gguf")


def test_vocabulary_and_metadata(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + "x" * 10_000 + "\u00e9"
    with LlamaCppModel(tiny_gguf.write_script(tmp_path / "m.gguf", {}, template), threads=1) as runtime:
        vocabulary = runtime.vocabulary
        assert vocabulary.chat_template == vocabulary.metadata("tokenizer.chat_template") == template
        assert vocabulary.metadata("general.architecture") == "llama"
        assert vocabulary.metadata("general.nothing") is None
        assert runtime.vocab_size == vocabulary.size == tiny_gguf.VOCAB
        assert (vocabulary.bos, vocabulary.eos, vocabulary.adds_bos) == (tiny_gguf.BOS, tiny_gguf.EOS, True)
        assert vocabulary.spelling(vocabulary.eos) == "</s>"
        assert vocabulary.spelling(-1) == ""
        assert vocabulary.control_tokens() == ["<s>", "</s>", *tiny_gguf.CONTROL]
        assert vocabulary.ends(tiny_gguf.EOS)
        assert not vocabulary.ends(tiny_gguf.byte("a"))


def test_tokens_and_text(noise: Path) -> None:
    text = "[INST]h\u00e9[/INST]"
    with LlamaCppModel(noise, threads=1) as runtime:
        plain = runtime.vocabulary.tokenize(text)
        parsed = runtime.vocabulary.tokenize(text, add_special=False, parse_special=True)
        assert plain.tolist() == [tiny_gguf.BOS, *(tiny_gguf.FIRST_BYTE + value for value in text.encode())]
        assert len(parsed) == 5
        assert parsed[0] == tiny_gguf.control("[INST]")
        assert runtime.vocabulary.text(plain[1:].tolist()) == text
        assert runtime.vocabulary.text(parsed.tolist()) == text
        assert runtime.vocabulary.text(parsed[1:3].tolist()) == "h\ufffd"


def test_spaces_that_are_three_bytes_each(noise: Path) -> None:
    with LlamaCppModel(noise, threads=1) as runtime:
        tokens = runtime.vocabulary.tokenize("a  b" + " " * 100).tolist()
        mark = [tiny_gguf.FIRST_BYTE + value for value in "\u2581".encode()]
        a, b = tiny_gguf.byte("a"), tiny_gguf.byte("b")
        assert tokens == [tiny_gguf.BOS, a, *mark, *mark, b, *mark * 100]


def test_a_lone_surrogate_does_not_reach_llama_cpp(noise: Path) -> None:
    with LlamaCppModel(noise, threads=1) as runtime:
        assert runtime.vocabulary.tokenize("\ud800", add_special=False).tolist() == [tiny_gguf.byte("?")]


def test_logits_do_not_depend_on_the_batch(noise: Path) -> None:
    tokens = np.arange(2 * 24, dtype=np.int32).reshape(2, 24) % 200 + tiny_gguf.FIRST_BYTE
    with LlamaCppModel(noise, threads=1) as runtime:
        with runtime.context(24, sequences=2, rows=48) as context:
            together = context.decode(tokens, 0, rows=24).copy()
        with runtime.context(24, rows=4) as context:
            for sequence in range(2):
                context.clear()
                for start in range(0, 24, 4):
                    part = context.decode(tokens[sequence : sequence + 1, start : start + 4], start, rows=4)
                    # Attention over f16 keys and values adds up in another order: a rounding of some 1e-3 of a logit.
                    np.testing.assert_allclose(part[0], together[sequence, start : start + 4], atol=5e-3)


def test_rows_are_the_last_of_each_sequence(noise: Path) -> None:
    tokens = np.arange(2 * 8, dtype=np.int32).reshape(2, 8) + tiny_gguf.byte("a")
    with LlamaCppModel(noise, threads=1) as runtime, runtime.context(8, sequences=2, rows=16) as context:
        every = context.decode(tokens, 0, rows=8).copy()
        context.clear()
        last = context.decode(tokens, 0, rows=3)
        np.testing.assert_array_equal(last, every[:, 5:])
        context.clear()
        assert context.decode(tokens, 0, rows=0).shape == (2, 0, tiny_gguf.VOCAB)


def test_a_context_that_is_full_is_an_error(noise: Path) -> None:
    with LlamaCppModel(noise, threads=1) as runtime, runtime.context(256) as context:
        context.decode(np.full((1, 256), 5, np.int32), 0, rows=1)
        with pytest.raises(SourceError, match="cannot run it"):
            context.decode(np.full((1, 1), 5, np.int32), 256, rows=1)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04" + bytes(100)])
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="is not a GGUF file"):
        LlamaCppModel(path)


@pytest.mark.parametrize("keep", [4, 8, 30, 1000, 5000, -100_000, -1])
def test_a_truncated_file_names_the_reason(tmp_path: Path, noise: Path, keep: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(noise.read_bytes()[:keep])
    with pytest.raises(MconvError, match=r"past the end of the file|more than the file holds|the file has") as caught:
        LlamaCppModel(path)
    assert "truncated" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.model", string("no_vocab"), "the file has no vocabulary"),
        ("tokenizer.ggml.model", string("none"), "the file has no vocabulary"),
        ("llama.block_count", uint32(0), "block_count is 0"),
        ("llama.block_count", uint32(MAX_LAYERS + 1), "block_count is 513"),
        ("llama.expert_count", uint32(8), "expert_count is 8 and expert_used_count 0"),
        ("llama.expert_used_count", uint32(2), "expert_count is 0 and expert_used_count 2"),
        ("llama.attention.layer_norm_rms_epsilon", float32(math.nan), "layer_norm_rms_epsilon is nan"),
        ("llama.attention.layer_norm_rms_epsilon", float32(math.inf), "layer_norm_rms_epsilon is inf"),
        ("llama.attention.layer_norm_rms_epsilon", float32(-1e-5), "layer_norm_rms_epsilon is -"),
    ],
)
def test_a_header_that_llama_cpp_would_die_of(tmp_path: Path, noise: Path, key: str, value: Value, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_header({**read_gguf(noise).metadata, key: value}, []))
    with pytest.raises(FormatError, match=words):
        LlamaCppModel(path)


def test_a_header_at_the_limits_is_left_to_llama_cpp(tmp_path: Path, noise: Path) -> None:
    path = tmp_path / "m.gguf"
    limits = {"llama.block_count": uint32(MAX_LAYERS), "llama.attention.layer_norm_rms_epsilon": float32(0)}
    path.write_bytes(encode_header({**read_gguf(noise).metadata, **limits}, []))
    check_header(path, read_header(path))
    with pytest.raises(FormatError, match=r"cannot load it: .*token_embd.weight. not found"):
        LlamaCppModel(path)


@pytest.mark.parametrize(
    ("setting", "spins"), [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "passive"}, 0)]
)
def test_threads_sleep_soon_unless_tuned(noise: Path, setting: dict[str, str], spins: int) -> None:
    code = (
        "import pathlib, sys; from mconv.inference.llama_cpp_model import LlamaCppModel;"
        "LlamaCppModel(pathlib.Path(sys.argv[1]), 1)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **setting}
    done = subprocess.run(
        [sys.executable, "-c", code, noise], env=environment, capture_output=True, text=True, check=True
    )
    if "_OPENMP" not in done.stderr:
        pytest.skip("this llama.cpp is built without GNU OpenMP")
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [str(spins)]


def test_an_unknown_architecture_is_named(tmp_path: Path, noise: Path) -> None:
    path = tmp_path / "m.gguf"
    name = gguf.Keys.General.ARCHITECTURE.encode()
    value = name + (8).to_bytes(4, "little") + (5).to_bytes(8, "little")
    data = noise.read_bytes()
    assert value + b"llama" in data
    path.write_bytes(data.replace(value + b"llama", value + b"lhama"))
    with pytest.raises(FormatError, match="unknown model architecture: 'lhama'"):
        LlamaCppModel(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LlamaCppModel(tmp_path / "m.gguf")


def test_cpu_flags() -> None:
    info = "processor\t: 0\nvmx flags\t: ept\nflags\t\t: fpu amx_tile avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert amx.cpu_flags(info) == {"fpu", "amx_tile", "avx2"}
    assert amx.cpu_flags("processor\t: 0\nFeatures\t: asimd\n") == frozenset()


def test_a_probe_that_dies_of_a_signal_takes_the_safe_way() -> None:
    assert not amx.survives_extra_buffers({"amx_tile"}, KILLED)


def test_a_probe_that_cannot_start_takes_the_safe_way(tmp_path: Path) -> None:
    assert not amx.survives_extra_buffers({"amx_tile"}, (str(tmp_path / "nothing"),))


def test_a_probe_that_ends_well_takes_the_fast_way() -> None:
    assert amx.survives_extra_buffers({"amx_tile"}, CLEAN)


def test_without_amx_nothing_is_tried(tmp_path: Path) -> None:
    trace = tmp_path / "tried"
    probe = (sys.executable, "-c", f"open({str(trace)!r}, 'w')")
    assert amx.survives_extra_buffers({"avx2"}, probe)
    assert not trace.exists()


def test_the_real_probe_tells_what_its_child_did() -> None:
    child = subprocess.run(amx.PROBE, capture_output=True)
    assert amx.survives_extra_buffers({"amx_tile"}, amx.PROBE) == (child.returncode == 0)
    # Where AMX is listed and faults the child dies, as it is meant to.
    if "amx_tile" not in amx.cpu_flags(amx.CPU_INFO.read_text()):
        assert child.returncode == 0, child.stderr


def test_the_safe_way_is_said_once_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t: amx_tile\n")
    model = tiny_gguf.write_noise(tmp_path / "q8.gguf", quantization=gguf.GGMLQuantizationType.Q8_0)
    tokens = np.full((1, 32), tiny_gguf.byte("a"), np.int32)
    amx.use_extra_buffers.cache_clear()
    with LlamaCppModel(model, threads=1) as runtime, runtime.context(32) as context:
        fast = context.decode(tokens, 0, rows=1).copy()
    monkeypatch.setattr(amx, "CPU_INFO", info)
    monkeypatch.setattr(amx, "PROBE", KILLED)
    amx.use_extra_buffers.cache_clear()
    try:
        with listening(Listener(note=heard.append)):
            for _ in range(2):
                with LlamaCppModel(model, threads=1) as runtime, runtime.context(32) as context:
                    safe = context.decode(tokens, 0, rows=1).copy()
    finally:
        amx.use_extra_buffers.cache_clear()
    assert ["AMX" in line for line in heard] == [True]
    # Two kernels for one product: they add in another order, and round the keys and values to f16 afterwards.
    np.testing.assert_allclose(safe, fast, atol=5e-3)
