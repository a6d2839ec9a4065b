"""mval weights: untouched artifacts pass in every layout and type; the command, its numbers and its memory."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from mconv.convert.cli.main import cli as mconv
from mconv.convert.containers.gguf import read_gguf
from mconv.convert.layouts import open_checkpoint
from mconv.validate.cli import cli
from mconv.validate.subject import Subject
from mconv.validate.weights.compare import compare_weights
from mconv.validate.weights.pairs import pair_tensors

from support import mutations
from support.command_line import Command
from support.gguf_parts import write_parts
from support.legacy_imatrix import write_legacy_imatrix
from support.weight_checks import LAYER, Make, compare, edit_config, found, spoil, statuses


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_K_M", "Q3_K_M", "megatron"])
@pytest.mark.parametrize("model", ["small", "tied", "experts"])
def test_an_untouched_artifact_passes(model: str, kind: str, make: Make, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue(model)
    artifact = make(reference, kind)
    result = compare(artifact, reference)
    assert found(result) == []
    assert len(result.tensors) == len(open_checkpoint(reference).tensors)
    assert (result.missing, result.extra) == ((), ())
    # Only what our kernels or a plain loop encode is held against its bytes.
    assert statuses(result) == {(tensor.type, expected_status(tensor.type)) for tensor in result.tensors}
    assert result.bytes > sum(file.stat().st_size for file in reference.glob("*.safetensors"))


def expected_status(kind: str) -> str:
    return "quantized" if kind == "Q3_K" else "exact"


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M", "Q3_K_M"])
def test_the_errors_are_those_of_numpy(kind: str, small: Path, make: Make) -> None:
    artifact = make(small, kind)
    reference = open_checkpoint(small)
    rows = [row for row in compare(artifact, small).tensors if row.layer == 2 and row.kind not in ("attn_q", "attn_k")]
    for row in rows:  # rows of queries and keys are in another order
        stored = mutations.stored_rows(artifact, row.gguf)
        values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[row.type]).astype(np.float64)
        bits = reference.tensors[row.name].read(0, row.shape[0]).astype(np.uint32) << 16
        truth = bits.view(np.float32).astype(np.float64).reshape(row.shape)
        values = values.reshape(row.shape)
        assert row.relative_rmse == pytest.approx(np.sqrt(((values - truth) ** 2).sum() / (truth**2).sum()), rel=1e-6)
        assert row.max_error == pytest.approx(np.abs(values - truth).max(), rel=1e-5)
        lengths = np.linalg.norm(values) * np.linalg.norm(truth)
        assert row.cosine == pytest.approx((values * truth).sum() / lengths, rel=1e-9)
        assert row.bytes == stored.size
    assert len(rows) == 7


def test_any_layout_is_a_reference(small: Path, make: Make, command: Command, tmp_path: Path) -> None:
    megatron, file = make(small, "megatron"), make(small, "BF16")
    back = tmp_path / "back"
    assert command(mconv, "megatron-to-hf", megatron, back).code == 0
    for reference in (small, megatron, file):
        for artifact in (small, megatron, file, back, make(small, "Q4_K_M")):
            result = compare(artifact, reference)
            assert (found(result), result.count("exact")) == ([], len(result.tensors)), (artifact, reference)


def test_a_quantized_reference_is_decoded(small: Path, make: Make, command: Command, tmp_path: Path) -> None:
    quantized, decoded = make(small, "Q4_K_M"), tmp_path / "decoded"
    assert command(mconv, "gguf-to-hf", quantized, decoded, "--dtype", "f32").code == 0
    result = compare(decoded, quantized)
    assert (found(result), statuses(result)) == ([], {("F32", "exact")})
    result = compare(make(small, "Q3_K_M"), make(small, "Q3_K_M"))
    assert (found(result), result.count("exact")) == ([], len(result.tensors))


def test_summaries_add_up(experts: Path, make: Make) -> None:
    result = compare(make(experts, "Q4_K_M"), experts)
    for rows in (result.by_type, result.by_kind, result.by_layer):
        assert sum(row.tensors for row in rows) == len(result.tensors)
        assert sum(row.exact for row in rows) == result.count("exact")
        assert sum(row.bytes for row in rows) == sum(tensor.bytes for tensor in result.tensors)
    assert [row.key for row in result.by_layer] == [None, 0, 1]
    stacks = next(row for row in result.by_kind if row.key == "ffn_gate_exps")
    assert stacks.tensors == 16
    by_hand = [tensor for tensor in result.tensors if tensor.kind == "ffn_gate_exps"]
    assert stacks.relative_rmse == pytest.approx(np.sqrt(np.mean([tensor.relative_rmse**2 for tensor in by_hand])))
    assert stacks.worst == max(by_hand, key=lambda tensor: tensor.relative_rmse).name


def test_a_file_in_parts(small: Path, make: Make, tmp_path: Path) -> None:
    first = write_parts(make(small, "Q4_K_M"), tmp_path / "parts", 9)
    for artifact, reference in ((first, small), (make(small, "Q4_K_M"), first), (first, first)):
        result = compare(artifact, reference)
        assert (found(result), result.count("exact")) == ([], len(result.tensors))
    second, third, *_ = sorted(first.parent.glob("*.gguf"))[1:]
    name = next(tensor.name for tensor in read_gguf(second).tensors if tensor.name.endswith("ffn_up.weight"))
    mutations.flip_bit(second, name, 5, 41, 3)
    ((kind, subject),) = found(compare(first, small))
    assert (kind, subject) == ("bit_flip", f"model.layers.{name.split('.')[1]}.mlp.up_proj.weight")
    third.unlink()
    result = compare(first, small)
    assert (found(result), third.name in result.findings[0].what) == ([("unreadable", first.name)], True)
    assert found(compare(second, small)) == [("unreadable", second.name)]


def test_a_tied_output_may_be_stored(tied: Path, make: Make, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(make(tied, "BF16"), tmp_path))
    embedding = mutations.read_values(artifact, "token_embd.weight")
    mutations.rewrite(
        artifact, drop=["token_embd.weight"], add={"token_embd.weight": embedding, "output.weight": embedding}
    )
    result = compare(artifact, make(tied, "BF16"))
    assert (found(result), result.count("exact")) == ([], len(result.tensors))


YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024,
}  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M", "megatron"])
def test_memory_is_bounded_by_chunks(kind: str, small: Path, make: Make) -> None:
    """Beyond what opening takes, two threads hold less than the largest tensor has as float32: 33 MB."""
    artifact, reference = make(small, kind), Subject(small)
    compare_weights(Subject(artifact), reference)  # compiles

    def peak(action: Callable[[], object]) -> int:
        tracemalloc.start()
        action()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    opening = peak(lambda: pair_tensors(Subject(artifact), reference))
    assert peak(lambda: compare_weights(Subject(artifact), reference, threads=2)) - opening < 20 << 20


def test_the_command_prints_a_row_a_type_and_fails_on_findings(
    small: Path, make: Make, command: Command, tmp_path: Path
) -> None:
    good, bad = make(small, "Q4_K_M"), Path(shutil.copy(make(small, "Q4_K_M"), tmp_path / "bad.gguf"))
    passed = command(cli, "weights", good, "--reference", small, "--threads", 1)
    assert passed.code == 0, passed.err
    lines = passed.out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["Q4_K", "Q6_K", "F32"]
    mutations.swap(bad, "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    failed = command(cli, "weights", good, bad, "--reference", small)
    assert failed.code == 1
    assert "swapped" in failed.out
    assert LAYER + "mlp.gate_proj.weight" in failed.err


def test_the_json_of_the_command(small: Path, make: Make, command: Command, tmp_path: Path) -> None:
    good, cut = make(small, "BF16"), tmp_path / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:-100000])
    result = command(cli, "weights", cut, good, "--reference", small, "--json")
    assert result.code == 1
    assert list(result.json) == ["schema_version", "results"]
    first, second = result.json["results"]
    assert [finding["kind"] for finding in first["findings"]] == ["unreadable"]
    assert list(second) == [
        "file", "reference", "exact", "quantized", "different", "missing", "extra", "tensors", "by_type", "by_kind",
        "by_layer", "seconds", "bytes", "findings",
    ]  # fmt: skip
    assert (second["file"], second["reference"]) == (str(good), str(small))
    assert (second["exact"], second["quantized"], second["different"]) == (len(second["tensors"]), 0, 0)
    assert list(second["tensors"][0]) == [
        "name", "gguf", "layer", "kind", "type", "reference_type", "shape", "status", "relative_rmse", "max_error",
        "cosine", "bytes",
    ]  # fmt: skip
    assert second["by_layer"][0]["layer"] is None


def test_threads_change_nothing(small: Path, make: Make) -> None:
    one, three = (compare(make(small, "Q4_K_M"), small, threads=threads) for threads in (1, 3))
    assert one.tensors == three.tensors


def test_what_cannot_be_compared_is_an_error(small: Path, make: Make, command: Command, tmp_path: Path) -> None:
    good = make(small, "BF16")
    assert command(cli, "weights", tmp_path / "absent.gguf", "--reference", small).code == 4
    assert command(cli, "weights", good, "--reference", tmp_path / "absent").code == 3
    assert command(cli, "weights", good, "--reference", small, "--hf-config", small).code == 2
    torn = shutil.copytree(small, tmp_path / "torn")
    mutations.change_tensors(torn, lambda tensors: tensors.pop("lm_head.weight"))
    result = command(cli, "weights", good, "--reference", torn)
    assert (result.code, "lm_head.weight" in result.err) == (3, True)
    odd = write_legacy_imatrix(tmp_path / "odd.dat", {"blk.0.ffn_up.weight": np.ones(17, np.float32)})
    result = command(cli, "weights", make(small, "Q4_K_M"), "--reference", small, "--imatrix", odd)
    assert (result.code, "odd.dat" in result.err) == (3, True)


def test_a_reference_that_is_not_finite_is_told(small: Path, make: Make, tmp_path: Path) -> None:
    spoiled = shutil.copytree(small, tmp_path / "folder")
    mutations.change_tensors(spoiled, spoil)
    for kind in ("BF16", "Q4_K_M"):
        ((_, subject),) = found(compare(make(small, kind), spoiled))
        assert subject == LAYER + "mlp.down_proj.weight"


@pytest.mark.parametrize("rope", [YARN, LLAMA3])
def test_scaled_rotary_embeddings_survive_gguf(rope: dict, small: Path, make: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / rope["rope_type"])
    edit_config(folder, rope_parameters=rope)
    artifact = make(folder, "BF16")
    assert found(compare(artifact, folder)) == []
    edit_config(folder, rope_parameters={**rope, "factor": 2.0})
    assert found(compare(artifact, folder)) == [("hyperparameter", "rope.factor")]
    assert {subject for _, subject in found(compare(artifact, small))} == {"rope.type"}
