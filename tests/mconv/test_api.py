"""The package as a library: typed results, callbacks, no prints; and its documented examples."""

from __future__ import annotations

import doctest
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import mconv
from mconv import api
from mconv.convert import errors, layouts, reporting
from mconv.convert.engine.run import Progress

from support.paths import EVALUATION_TEXT, ROOT, TINY_MISTRAL


def failures(results: doctest.TestResults) -> int:
    assert results.attempted > 0
    return results.failed


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What examples take for granted: the repository's root, the package, and an empty folder."""
    monkeypatch.chdir(ROOT)
    return {"mconv": mconv, "folder": tmp_path, "Path": Path}


@pytest.mark.parametrize("module", [api, errors, layouts, reporting], ids=lambda module: module.__name__)
def test_the_examples_of_docstrings_run(module: ModuleType, names: dict[str, object]) -> None:
    assert failures(doctest.testmod(module, extraglobs=names)) == 0


def test_the_examples_of_the_page_run(names: dict[str, object]) -> None:
    page = ROOT / "docs/reference/python.md"
    assert failures(doctest.testfile(str(page), module_relative=False, globs=names)) == 0


def test_every_name_is_documented() -> None:
    text = (ROOT / "docs/reference/python.md").read_text()
    for name in mconv.__all__:
        assert getattr(mconv, name) is not None
        assert f"mconv.{name}" in text, name


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    progress: list[Progress] = []
    files = mconv.quantize(
        TINY_MISTRAL, "Q4_K_M", output_dir=tmp_path, on_progress=progress.append, on_note=told.append
    )
    assert [file.path for file in files] == [tmp_path / "tiny-mistral-Q4_K_M.gguf"]
    assert progress[0].done == 0
    assert progress[-1].done == progress[-1].total > 4_000_000
    report = mconv.validate(
        files[0].path, TINY_MISTRAL, texts=[EVALUATION_TEXT], checks=["weights", "tokens", "kl"], chunks=2, ctx=64
    )
    assert report.passed
    assert {gate.status for gate in report.gates} <= {"pass", "warn"}
    assert capfd.readouterr() == ("", "")


def test_a_gate_that_fails_is_a_result(tmp_path: Path) -> None:
    (file,) = mconv.quantize(TINY_MISTRAL, "Q8_0", output_dir=tmp_path)
    data = bytearray(file.path.read_bytes())
    data[-4000:-2000] = bytes(2000)
    file.path.write_bytes(data)
    report = mconv.validate(file.path, TINY_MISTRAL, checks=["weights"])
    assert not report.passed
    assert [gate.gate for gate in report.gates if gate.status == "fail"]


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda: mconv.open("/nowhere"), mconv.errors.SourceError, "no such file or folder"),
        (lambda: mconv.open(TINY_MISTRAL, hf_config="x"), mconv.errors.UsageError, "does not apply to reading"),
        (lambda: mconv.plan(TINY_MISTRAL, "onnx", "out"), mconv.errors.UsageError, "unknown layout 'onnx'"),
        (lambda: mconv.plan(TINY_MISTRAL, "gguf", "a", outtype="q3"), mconv.errors.UsageError, "not a valid choice"),
        (lambda: mconv.plan(TINY_MISTRAL, "gguf", "a", dtype="f32"), mconv.errors.UsageError, "--dtype does not apply"),
        (lambda: mconv.quantize(TINY_MISTRAL, "Q9"), mconv.errors.UsageError, "Q9"),
        (lambda: mconv.validate("a", "b", checks=["all"]), mconv.errors.UsageError, "'all' is not a check"),
    ],
)
def test_what_is_wrong_is_one_of_our_errors(act: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        act()


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    planned = mconv.plan(TINY_MISTRAL, "gguf", tmp_path / "a.gguf")
    mconv.run(planned)
    with pytest.raises(mconv.errors.DiskError, match="exists already"):
        mconv.run(planned)
    assert mconv.run(planned, overwrite=True).resumed == 0


@pytest.mark.parametrize("to", ["gguf", "hf", "megatron"])
def test_a_plan_runs_in_another_process(to: str, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=mconv.run, args=(mconv.plan(TINY_MISTRAL, to, tmp_path / "there"),)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    mconv.run(mconv.plan(TINY_MISTRAL, to, tmp_path / "here"))
    here, there = tmp_path / "here", tmp_path / "there"
    if to == "gguf":
        assert here.read_bytes() == there.read_bytes()
        return
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in files)


def test_modules_of_other_distributions_change_nothing(tmp_path: Path) -> None:
    """The wheel of configobj has a top-level package validate, and convert is as common a name."""
    for name in ("convert", "quantize", "validate", "release", "inference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    program = (
        "import mconv, mconv.validate.cli, mconv.convert.cli.main, mconv.release.cli, mconv.quantize.cli;"
        "from mconv.quantize import kernels; summary = mconv.inspect('examples/tiny-mistral');"
        "print(summary.family, callable(mconv.quantize))"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=path, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("llama True\n", 0), done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"numpy", "torch", "numba", "llama_cpp", "gguf", "transformers", "mistral_common", "click", "tqdm"}
    code = f"import sys, mconv; print(*sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == []
