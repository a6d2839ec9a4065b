"""Blocks through ggml, held against the files that llama-quantize writes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mconv.convert.containers.gguf import read_gguf
from mconv.convert.errors import QuantizationError
from mconv.convert.tensors.block_types import BlockType
from mconv.convert.tensors.nodes import row_count
from mconv.quantize.assign import TypeOptions, assign_types, check_importance
from mconv.quantize.filetypes import FileType
from mconv.quantize.ggml import dequantize_rows, quantize_rows
from mconv.quantize.imatrix import ImportanceMatrix
from mconv.quantize.mixture import ModelFacts
from mconv.quantize.overrides import parse_override

from support.golden import Golden, digest
from support.llama_quantize import Options, model_tensors, quantize, write_model
from support.paths import ROOT

MODEL = ModelFacts("llama", 2, 8, 2, 8)
TENSORS = model_tensors(MODEL, width=512, ffn_width=288, rows=3)
ENCODED_TYPES = [t for t in BlockType if t is not BlockType.F32]


def random_values(seed: int) -> dict[str, np.ndarray]:
    """Weights as models have them: a bell, a few outliers, a row of zeros."""
    generator = np.random.default_rng(seed)
    values = {t.name: generator.normal(0, 0.02, t.shape).astype(np.float32) for t in TENSORS}
    for array in values.values():
        array.reshape(-1)[::97] *= 30
        array[..., :32] = 0
    return values


def random_importance(seed: int) -> dict[str, np.ndarray]:
    """Importance of every matrix except the token embedding, which llama-imatrix never sees; experts differ."""
    generator = np.random.default_rng(seed)
    return {
        t.name: generator.gamma(0.5, size=(t.shape[0] if len(t.shape) == 3 else 1) * t.row_weights).astype(np.float32)
        for t in TENSORS
        if t.dimensions > 1 and t.name != "token_embd.weight"
    }


VALUES = random_values(1)
IMPORTANCE = random_importance(2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.gguf"
    write_model(path, MODEL, VALUES)
    return path


def stored_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a file."""
    return {t.name: (t.dtype, t.read(0, row_count(t.shape)).tobytes()) for t in read_gguf(path).tensors}


def our_bytes(file_type: FileType, matrix: ImportanceMatrix | None) -> dict[str, tuple[str, bytes]]:
    """The same from our own types and encoder."""
    assignments = assign_types(TENSORS, MODEL, file_type, TypeOptions(), matrix is not None)
    check_importance(assignments.values(), matrix)
    encoded = {}
    for name, assignment in assignments.items():
        weights = matrix.weights_of(name, assignment.tensor.shape) if matrix else None
        experts = 1 if len(assignment.tensor.shape) < 3 else assignment.tensor.shape[0]
        rows = VALUES[name].reshape(experts, -1, assignment.tensor.row_weights)
        blocks = [encode(assignment.type, r, None if weights is None else weights[e]) for e, r in enumerate(rows)]
        encoded[name] = (assignment.type.name, b"".join(block.tobytes() for block in blocks))
    return encoded


def encode(block_type: BlockType, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    out = np.full((len(rows), block_type.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    quantize_rows(block_type, rows, weights, out)
    return out


def decode(block_type: BlockType, blocks: np.ndarray, row_weights: int) -> np.ndarray:
    out = np.full((len(blocks), row_weights), np.nan, np.float32)
    dequantize_rows(block_type, blocks, out)
    return out


@pytest.mark.parametrize("file_type", [t for t in FileType if t is not FileType.Q1_0])
@pytest.mark.parametrize("with_imatrix", [False, True])
def test_bytes_are_those_of_llama_quantize(
    source: Path, tmp_path: Path, file_type: FileType, with_imatrix: bool, golden: Golden
) -> None:
    matrix = ImportanceMatrix("imatrix.gguf", IMPORTANCE) if with_imatrix else None

    def theirs() -> dict[str, str] | None:
        """None where llama-quantize refuses."""
        try:
            quantize(source, tmp_path / "out.gguf", file_type, Options(imatrix=IMPORTANCE if with_imatrix else None))
        except RuntimeError as error:
            assert "requires an imatrix" in str(error)
            return None
        return in_words(stored_bytes(tmp_path / "out.gguf"))

    expected = golden(theirs, source)
    if expected is None:
        with pytest.raises(QuantizationError, match="without importance values"):
            our_bytes(file_type, matrix)
        return
    assert in_words(our_bytes(file_type, matrix)) == expected


def in_words(tensors: dict[str, tuple[str, bytes]]) -> dict[str, str]:
    """Type and digest of each tensor."""
    return {name: f"{kind} {digest(content)}" for name, (kind, content) in tensors.items()}


@pytest.mark.parametrize("block_type", ENCODED_TYPES)
def test_decoded_values_are_those_of_llama_quantize(source: Path, tmp_path: Path, block_type: BlockType) -> None:
    packed, plain = tmp_path / "packed.gguf", tmp_path / "plain.gguf"
    name = "blk.0.attn_q.weight"
    quantize(source, packed, FileType.Q4_0, Options(IMPORTANCE, overrides=[("blk.0.attn_q", block_type)]))
    requantize_to_float32(packed, plain)
    tensor = next(t for t in read_gguf(packed).tensors if t.name == name)
    assert tensor.dtype == block_type.name
    ours = decode(block_type, tensor.read(0, 3).view(np.uint8), 512)
    assert ours.tobytes() == stored_bytes(plain)[name][1]


def requantize_to_float32(source: Path, target: Path) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 1, FileType.F32.number, True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


def test_only_some_types_profit_from_importance() -> None:
    rows, weights = VALUES["blk.0.attn_q.weight"], IMPORTANCE["blk.0.attn_q.weight"]
    needs = {BlockType.IQ1_S, BlockType.IQ2_XXS, BlockType.IQ2_XS}
    changed = {t for t in BlockType if t not in needs and (encode(t, rows) != encode(t, rows, weights)).any()}
    assert changed | needs == {t for t in BlockType if t.uses_importance}
    for block_type in needs:
        with pytest.raises(QuantizationError, match="needs an importance matrix"):
            encode(block_type, rows)


def test_float16_rounds_to_nearest_even() -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 1 << 16, np.uint32)
    values = bits.view(np.float32)
    values = values[np.abs(values) < 65504].reshape(1, -1)
    assert encode(BlockType.F16, values).view(np.float16).tobytes() == values.astype(np.float16).tobytes()


def test_bfloat16_rounds_to_nearest_even() -> None:
    pairs = {
        0x3F800000: 0x3F80, 0x3F808000: 0x3F80, 0x3F818000: 0x3F82, 0x3F808001: 0x3F81, 0x3F817FFF: 0x3F81,
        0x80000000: 0x8000, 0x00018000: 0x0002, 0xBF818000: 0xBF82, 0x7F7F0000: 0x7F7F, 0x00000001: 0x0000,
    }  # fmt: skip
    rows = np.array([list(pairs)], np.uint32).view(np.float32)
    assert encode(BlockType.BF16, rows).view(np.uint16).tolist() == [list(pairs.values())]


@pytest.mark.parametrize("value", [3e38, -1e12, np.inf, np.nan])
def test_values_that_would_end_the_process_are_refused(value: float) -> None:
    rows = np.ones((1, 256), np.float32)
    rows[0, 3] = value
    with pytest.raises(QuantizationError, match="IQ3_S cannot hold values beyond 1e\\+08"):
        quantize_rows(BlockType.IQ3_S, rows, None, np.empty((1, 110), np.uint8))


def test_threads_give_the_same_bytes() -> None:
    rows = np.random.default_rng(4).normal(0, 0.02, (64, 512)).astype(np.float32)
    whole = encode(BlockType.IQ3_S, rows)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda row: encode(BlockType.IQ3_S, row[None]), rows))
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("rows", "weights", "out"),
    [
        (np.zeros((2, 256), np.float64), None, np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 512), np.float32)[:, ::2], None, np.zeros((2, 144), np.uint8)),
        (np.zeros((2, 256), np.float32), None, np.zeros((1, 144), np.uint8)),
        (np.zeros((2, 256), np.float32), np.zeros(255, np.float32), np.zeros((2, 144), np.uint8)),
    ],
)
def test_a_wrong_array_never_reaches_the_library(rows: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    with pytest.raises(TypeError, match="expected C-contiguous"):
        quantize_rows(BlockType.Q4_K, rows, weights, out)


ENCODE_ZEROS = (
    "import sys, numpy as np; from mconv.convert.tensors.block_types import BlockType;"
    "from mconv.quantize.ggml import quantize_rows;"
    "quantize_rows(BlockType.Q8_0, np.zeros((1, 32), np.float32), None, np.zeros((1, 34), np.uint8));"
    "print('llama_cpp' in sys.modules)"
)


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}; {code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_llama_cpp_itself_is_not_imported() -> None:
    assert run_python(ENCODE_ZEROS).stdout == "False\n"


def test_a_missing_library_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    failed = run_python(ENCODE_ZEROS, tmp_path)
    assert "QuantizationError: llama-cpp-python is installed without" in failed.stderr


def test_a_type_asked_for_by_name_reaches_the_file(source: Path, tmp_path: Path) -> None:
    options = TypeOptions((parse_override("attn_k=nvfp4"),))
    found = assign_types(TENSORS, MODEL, FileType.Q8_0, options)["blk.1.attn_k.weight"]
    quantize(source, tmp_path / "out.gguf", FileType.Q8_0, Options(overrides=[("attn_k", BlockType.NVFP4)]))
    blocks = encode(found.type, VALUES["blk.1.attn_k.weight"])
    assert stored_bytes(tmp_path / "out.gguf")["blk.1.attn_k.weight"] == ("NVFP4", blocks.tobytes())
