"""A model written in parts, held against llama.cpp: its own splitter, and its loader."""

from __future__ import annotations

import subprocess
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.containers.gguf_split import read_gguf_model
from mconv.convert.engine.outputs import Output
from mconv.convert.engine.plan import TypedTarget
from mconv.convert.engine.run import run
from mconv.convert.errors import UsageError
from mconv.convert.layouts.gguf.form import open_form
from mconv.convert.layouts.gguf.split import part_name, plan_parts
from mconv.inference.llama_cpp_model import LlamaCppModel

from support import tiny_gguf

LIMIT = 1_000_000
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
# What the build of llama.cpp generates and the program prints.
BUILD_INFO = """
const char * llama_commit() { return ""; }
int llama_build_number() { return 0; }
const char * llama_build_target() { return ""; }
const char * llama_compiler() { return ""; }
"""


@pytest.fixture(scope="module")
def splitter(llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-gguf-split, compiled against the llama.cpp that llama-cpp-python carries."""
    folder = tmp_path_factory.mktemp("splitter")
    (folder / "build.cpp").write_text('#include "build-info.h"\n' + BUILD_INFO)
    program = folder / "llama-gguf-split"
    includes = [f"-I{llama_cpp_source / part}" for part in ("include", "ggml/include", "common")]
    sources = [llama_cpp_source / "tools/gguf-split/gguf-split.cpp", folder / "build.cpp"]
    libraries = [f"-L{LIBRARIES}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{LIBRARIES}"]
    subprocess.run(["g++", "-std=c++17", *includes, *sources, "-o", program, *libraries], check=True)
    return program


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes, in F16."""
    path = tmp_path_factory.mktemp("whole") / "noise.gguf"
    return tiny_gguf.write_noise(path, quantization=GGMLQuantizationType.F16)


def write_parts(whole: Path, folder: Path, limit: int) -> list[Path]:
    """The model in parts, through our own writer."""
    source = open_form(whole)
    typed = [TypedTarget(tensor.target, tensor.type.name) for tensor in source.tensors]
    plans = plan_parts(source.metadata, typed, source.alignment, limit)
    outputs = [Output(plan, folder / part_name("parts", place, len(plans))) for place, plan in enumerate(plans)]
    run(outputs)
    assert [output.path.stat().st_size for output in outputs] == [plan.size for plan in plans]
    return [output.path for output in outputs]


def test_the_parts_are_those_of_llama_gguf_split(whole: Path, splitter: Path, tmp_path: Path) -> None:
    # It reads sizes in whole megabytes.
    words = [splitter, "--split", "--split-max-size", f"{LIMIT // 1_000_000}M", whole, tmp_path / "theirs"]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    theirs = sorted(tmp_path.glob("theirs-*.gguf"))
    ours = write_parts(whole, tmp_path, LIMIT)
    assert len(ours) == len(theirs) > 3
    assert [path.name for path in ours] == [path.name.replace("theirs", "parts") for path in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.read_bytes() == their.read_bytes(), our.name


def test_the_parts_read_as_the_whole(whole: Path, tmp_path: Path) -> None:
    first = write_parts(whole, tmp_path, LIMIT)[0]
    model, original = read_gguf_model(first), read_gguf(whole)
    assert model.metadata == original.metadata
    assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in original.tensors]
    for part, tensor in zip(model.tensors, original.tensors, strict=True):
        assert part.read(0, 8).tobytes() == tensor.read(0, 8).tobytes()


def test_llama_cpp_computes_the_same_from_the_parts(whole: Path, tmp_path: Path) -> None:
    first = write_parts(whole, tmp_path, LIMIT)[0]
    tokens = np.array([[tiny_gguf.BOS, *map(tiny_gguf.byte, "some text")]], np.int32)
    logits = []
    for path in (whole, first):
        with LlamaCppModel(path, threads=1) as runtime, runtime.context(64, rows=tokens.size) as context:
            logits.append(context.decode(tokens, 0, rows=tokens.size).tobytes())
    assert logits[0] == logits[1]


def test_a_tensor_larger_than_the_limit_has_a_part_to_itself(whole: Path, tmp_path: Path) -> None:
    parts = write_parts(whole, tmp_path, 1)
    assert all(len(read_gguf(part).tensors) == 1 for part in parts)
    assert len(read_gguf_model(parts[0]).tensors) == len(parts) == len(read_gguf(whole).tensors)


def test_more_parts_than_the_format_counts_are_refused(whole: Path) -> None:
    source = open_form(whole)
    tensor = source.tensors[0]
    with pytest.raises(UsageError, match="more than a split model can have"):
        plan_parts(source.metadata, [TypedTarget(tensor.target, tensor.type.name)] * (1 << 16), 32, 1)
