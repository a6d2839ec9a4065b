"""Plans are plain data: they compare, hash, pickle, and go to JSON and back."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mconv.convert.conversion import plan_conversion
from mconv.convert.engine.outputs import Output
from mconv.convert.engine.plan import FolderPlan, Plan, TypedTarget, place_tensors
from mconv.convert.engine.run import run
from mconv.convert.errors import FormatError
from mconv.convert.layouts import find_layout, open_checkpoint
from mconv.convert.tensors.files import SourceFile
from mconv.convert.tensors.nodes import FileTensor
from mconv.convert.tensors.rows import Rows, Target

from support import plans
from support.paths import TINY_MISTRAL


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plans.plan(plans.write_source(tmp_path / "source"), "F16")


def model_plan() -> Plan:
    """The bundled example as a GGUF file."""
    planned = plan_conversion(open_checkpoint(TINY_MISTRAL), find_layout("gguf"), Path("a.gguf")).planned.plan
    assert isinstance(planned, Plan)
    return planned


def test_equal_plans_are_equal(plan: Plan) -> None:
    again = plans.plan([tensor.target for tensor in plan.tensors], "F16")
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.digest == plan.digest
    other = plans.plan([tensor.target for tensor in plan.tensors], "BF16")
    assert other != plan
    assert other.digest != plan.digest


def test_a_source_that_was_written_to_makes_another_plan(tmp_path: Path, plan: Plan) -> None:
    again = plans.plan(plans.write_source(tmp_path / "source", seed=1), "F16")
    assert again.size == plan.size
    assert again.digest != plan.digest


def test_a_plan_pickles() -> None:
    plan = model_plan()
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.digest == plan.digest


def test_a_plan_goes_to_json_and_back() -> None:
    plan = model_plan()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert Plan.from_json(again.to_json()) == plan


@pytest.mark.parametrize("layout", ["hf", "megatron"])
def test_the_plans_of_a_folder_go_to_json_and_back(layout: str) -> None:
    folder = plan_conversion(open_checkpoint(TINY_MISTRAL), find_layout(layout), Path("out")).planned.plan
    assert isinstance(folder, FolderPlan)
    assert pickle.loads(pickle.dumps(folder)) == folder
    for plan in folder.weights.values():
        assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_of_a_checkpoint_that_was_made_from_stacks_names_each_stack_once(tmp_path: Path) -> None:
    """Each layer is a slice of a stack of all; repeated for each, a large model's plan would have no end."""
    source = plan_conversion(open_checkpoint(TINY_MISTRAL), find_layout("megatron"), tmp_path / "m")
    source.run()
    plan = plan_conversion(open_checkpoint(tmp_path / "m"), find_layout("gguf"), Path("a.gguf")).planned.plan
    assert isinstance(plan, Plan)
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert text.count('"decoder.layers.mlp.linear_fc2.weight"') < 30


def _write(plan: Plan, path: Path) -> None:
    run([Output(plan, path)])


def test_another_process_carries_a_plan_out(tmp_path: Path) -> None:
    plan = model_plan()
    _write(plan, tmp_path / "here.gguf")
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(plan, tmp_path / "there.gguf"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def test_a_process_that_knows_nothing_of_the_encoding_carries_a_plan_out(tmp_path: Path, plan: Plan) -> None:
    """A plan names its encodings; where they are defined is found when they are needed."""
    quantized = plans.plan([tensor.target for tensor in plan.tensors], "Q8_0")
    (tmp_path / "plan.json").write_text(quantized.to_json())
    program = (
        "import pathlib, sys; from mconv.convert.engine.plan import Plan; from mconv.convert.engine.run import run;"
        "from mconv.convert.engine.outputs import Output; folder = pathlib.Path(sys.argv[1]);"
        "run([Output(Plan.from_json((folder / 'plan.json').read_text()), folder / 'there')])"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    run([Output(quantized, tmp_path / "here")])
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_plan_of_a_thousand_files_is_written_down(tmp_path: Path) -> None:
    targets = []
    for number in range(1000):
        path = tmp_path / f"shard-{number}"
        path.write_bytes(np.full(64, number, np.float32).tobytes())
        tensor = FileTensor(f"t{number}", "F32", (8, 8), SourceFile.at(path), 0, 32, (number, 0))
        targets.append(Target(tensor.name, tensor.shape, Rows((tensor,))))
    tensors = place_tensors([TypedTarget(target, "F32") for target in targets])
    plan = Plan(b"", tensors, 1000 * 256)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert len(again.sources) == 1000
    run([Output(again, tmp_path / "all")])
    written = np.fromfile(tmp_path / "all", np.float32).reshape(1000, 64)
    assert (written == np.arange(1000)[:, None]).all()


def edit_offset(document: dict) -> None:
    entry = next(entry for entry in document["objects"] if entry[0].endswith(":Plane"))
    entry[1] += 1


def name_another_class(document: dict) -> None:
    document["objects"][0][0] = "subprocess:Popen"


def name_another_encoding(document: dict) -> None:
    entry = next(entry for entry in document["objects"] if entry[0].endswith(":PlannedTensor"))
    entry[2] = "Q4_X"


def drop_a_value(document: dict) -> None:
    document["objects"][0].pop()


def refer_ahead(document: dict) -> None:
    document["objects"][0][1] = {"at": 5}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_offset, "was changed after it was made"),
        (name_another_class, "unknown part of a plan: 'subprocess:Popen'"),
        (name_another_encoding, "was changed after it was made"),
        (drop_a_value, "the plan is damaged"),
        (refer_ahead, "the plan is damaged"),
        (lambda document: document.pop("objects"), "the plan is damaged"),
        (lambda document: document.update(version="0.0.0"), "the plan is from version 0.0.0"),
        (lambda document: document.update(format="plan"), "is not a plan"),
    ],
)
def test_a_plan_that_was_edited_is_refused(edit: Callable[[Any], object], message: str, plan: Plan) -> None:
    document = json.loads(plan.to_json())
    edit(document)
    with pytest.raises(FormatError, match=message):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", '{"format": "mconv-plan"'])
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        Plan.from_json(text)


def test_the_jobs_of_a_plan_are_all_of_its_rows(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mconv.convert.engine.jobs.CHUNK_WEIGHTS", 7 * plans.WIDTH)
    jobs = list(plan.jobs())
    assert [job.number for job in jobs] == list(range(plan.job_count))
    for tensor in plan.tensors:
        ranges = [(job.start, job.stop) for job in jobs if job.tensor == tensor]
        assert [row for start, stop in ranges for row in range(start, stop)] == list(range(plans.ROWS))
        assert max(stop - start for start, stop in ranges) == 7
    assert sum(job.size for job in jobs) == plan.size - len(plan.header)
