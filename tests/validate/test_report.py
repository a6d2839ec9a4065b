"""`mval report`: all checks in one value; the limits it is held to; the table, the JSON and the page made of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mconv.convert.cli.main import cli as mconv
from mconv.convert.errors import UsageError
from mconv.convert.model.metadata import float32
from mconv.quantize.cli import cli as mquant
from mconv.quantize.filetypes import FileType
from mconv.validate.cli import cli
from mconv.validate.findings import CHECKS
from mconv.validate.report import make
from mconv.validate.report.gates import DEFAULT_GATES, apply_gates, read_gates
from mconv.validate.report.names import short_names, shortened
from mconv.validate.report.page import render_page
from mconv.validate.report.plots import alone, plots, size_plot
from mconv.validate.report.summary import summarize

from support import mutations, mutations_vocabulary
from support.command_line import Command
from support.paths import TINY_MISTRAL as EXAMPLE

TEXT = EXAMPLE.parent / "tiny-mistral-eval.txt"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as BF16 and Q4_K_M, another model's Q4_K_M, and a report of the first two."""
    folder = tmp_path_factory.mktemp("report")
    run = CliRunner().invoke
    assert run(mconv, ["hf-to-gguf", str(EXAMPLE), str(folder / "bf16.gguf")]).exit_code == 0
    assert run(mquant, [str(EXAMPLE), "--type", "Q4_K_M", "--output", str(folder / "q4.gguf")]).exit_code == 0
    arguments = ["--ctx", "128", "--chunks", "4", "--prompt", "Once upon a time"]
    outputs = ["--json", str(folder / "report.json"), "--html", str(folder / "report.html")]
    files = [str(folder / name) for name in ("bf16.gguf", "q4.gguf")]
    result = run(cli, ["report", *files, "--reference", str(EXAMPLE), "--text", str(TEXT), *arguments, *outputs])
    assert result.exit_code == 0, result.output
    (folder / "table.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_it_has_a_member_a_check(report: dict[str, Any], folder: Path) -> None:
    assert report["schema_version"] == 1
    assert report["checks"] == list(CHECKS)
    assert report["passed"] is True
    bf16, q4 = report["artifacts"]
    assert (bf16["type"], q4["type"]) == ("BF16", "Q4_K_M")
    assert q4["bytes"] == (folder / "q4.gguf").stat().st_size
    for check in ("weights", "tokens", "template", "kl"):
        assert [Path(row["file"]).name for row in report[check]["results"]] == ["bf16.gguf", "q4.gguf"]
    assert {row["file"] for row in report["perplexity"]["results"]} == {str(EXAMPLE), bf16["file"], q4["file"]}
    assert report["weights"]["results"][1]["different"] == 0
    kl = {row["file"]: row["kl"]["mean"] for row in report["kl"]["results"]}
    assert kl[bf16["file"]] < 1e-4 < kl[q4["file"]]
    agreements = [row["agreement"] for row in report["generate"]["results"] if row["file"] == bf16["file"]]
    assert agreements[0]["reference"] == str(EXAMPLE)
    assert agreements[0]["common_prefix"] == agreements[0]["tokens"]


def test_the_table_has_a_row_an_artifact(folder: Path) -> None:
    header, first, second, *_ = (folder / "table.txt").read_text().splitlines()
    assert header.split()[:3] == ["file", "type", "size"]
    assert ("BF16" in first, "Q4_K_M" in second) == (True, True)


def with_numbers(report: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """The report with other numbers in the divergence of its last artifact."""
    changed = json.loads(json.dumps(report))
    changed["kl"]["results"][-1].update(members)
    return changed


@pytest.mark.parametrize(
    ("mean", "status"), [(0.0625, "pass"), (0.0626, "warn"), (0.1561, "fail"), (None, "fail")], ids=str
)
def test_a_limit_is_of_the_type(mean: float | None, status: str, report: dict[str, Any]) -> None:
    changed = with_numbers(report, kl={**report["kl"]["results"][-1]["kl"], "mean": mean})
    gates = {(Path(gate.file).name, gate.gate): gate for gate in apply_gates(changed, read_gates(DEFAULT_GATES))}
    assert gates["q4.gguf", "kl_mean"].status == status
    assert gates["bf16.gguf", "kl_mean"].status == "pass"
    assert TEXT.name in gates["q4.gguf", "kl_mean"].what


def test_a_share_has_a_least(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text(
        "[every]\nsame_top = { warn = 0.95, fail = 0.9 }\n[type.BF16]\nsame_top = 0.1\n"
    )
    limits = read_gates(tmp_path / "gates.toml")
    for share, status in ((0.96, "pass"), (0.94, "warn"), (0.89, "fail")):
        found = apply_gates(with_numbers(report, same_top=share), limits)
        assert [gate.status for gate in found if gate.gate == "same_top"] == ["pass", status]


def test_a_finding_that_fails_is_a_gate_that_fails(report: dict[str, Any]) -> None:
    finding = {"check": "weights", "kind": "swapped", "subject": "x", "what": "x is y", "severity": "fail"}
    report["weights"]["results"][0]["findings"].append(finding)
    (gate,) = [gate for gate in apply_gates(report, {}) if gate.status == "fail"]
    assert (Path(gate.file).name, gate.gate, gate.value, gate.what) == ("bf16.gguf", "weights", 1, "swapped: x is y")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[every]\nkl_maen = 1", "kl_maen"),
        ("[evry]\nkl_mean = 1", "evry"),
        ("[every]\nkl_mean = { warm = 1 }", "warm"),
        ("[every]\nkl_mean = 'low'", "every.kl_mean is not a valid limit"),
        ("[every]\nkl_mean = nan", "every.kl_mean is not a valid limit"),
        ("[every]\nkl_mean = { warn = true }", "every.kl_mean is not a valid limit"),
        (f"[every]\nkl_mean = 1{'0' * 400}", "every.kl_mean is not a valid limit"),
        ("[every", "not TOML"),
        ("type = 3", "type is not a table"),
    ],
)
def test_limits_are_read_strictly(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text(text)
    with pytest.raises(UsageError, match=word) as raised:
        read_gates(tmp_path / "gates.toml")
    assert raised.value.hint


def test_the_default_limits_are_of_types_that_there_are() -> None:
    limits = read_gates(DEFAULT_GATES)
    assert set(limits) - {""} <= set(FileType.__members__)
    # llama.cpp's own figures: 0.031273 for Q4_K_M, and a better type never has a wider limit.
    assert limits["Q4_K_M"]["kl_mean"].warn == pytest.approx(2 * 0.031273, rel=0.01)
    fails = [limits[name]["kl_mean"].fail for name in ("Q6_K", "Q5_K_M", "Q4_K_M")]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(fails))


def test_a_failed_gate_is_exit_code_1_after_the_report(folder: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text("[every]\nkl_mean = 1e-9\n")
    options = ("--text", TEXT, "--ctx", 64, "--chunks", 2, "--skip", "weights,tokens,template,generate")
    result = command(
        cli,
        "report",
        folder / "q4.gguf",
        "--reference",
        EXAMPLE,
        *options,
        "--gates",
        tmp_path / "gates.toml",
        "--json",
        "-",
    )
    assert result.code == 1
    assert result.json["passed"] is False
    assert result.json["checks"] == ["perplexity", "kl"]
    assert "kl_mean fails" in result.err


def test_a_mistake_fails_the_gate_of_its_check(folder: Path, command: Command, tmp_path: Path) -> None:
    right = folder / "q4.gguf"
    swapped, theta = (Path(shutil.copy(right, tmp_path / name)) for name in ("swapped.gguf", "theta.gguf"))
    mutations.swap(swapped, "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    mutations.rewrite(theta, keys={"llama.rope.freq_base": float32(12345.0)})
    shifted = mutations_vocabulary.rewrite(right, tmp_path / "shifted.gguf", mutations_vocabulary.shifted)
    named = mutations_vocabulary.rewrite(right, tmp_path / "named.gguf", mutations_vocabulary.template("mistral-v7"))
    files = (swapped, theta, shifted, named)
    result = command(cli, "report", *files, "--reference", EXAMPLE, "--skip", "perplexity,kl,generate", "--json", "-")
    assert result.code == 1
    failed = {
        (Path(gate["file"]).stem, gate["gate"]): gate["what"]
        for gate in result.json["gates"]["results"]
        if gate["status"] == "fail"
    }
    assert "swapped: model.layers.1.mlp" in failed["swapped", "weights"]
    assert "hyperparameter: rope.theta" in failed["theta", "weights"]
    assert "vocabulary_shifted" in failed["shifted", "tokens"]
    assert "template_is_a_name" in failed["named", "template"]
    # A vocabulary that has moved takes the template's tokens along; nothing else fails.
    assert set(failed) - {("shifted", "template")} == {
        ("swapped", "weights"), ("theta", "weights"), ("shifted", "tokens"), ("named", "template")
    }  # fmt: skip


def test_what_is_not_finite_fails_every_check_that_it_touches(folder: Path, command: Command, tmp_path: Path) -> None:
    broken = Path(shutil.copy(folder / "bf16.gguf", tmp_path / "broken.gguf"))
    mutations.write_bytes(broken, "blk.3.ffn_down.weight", 5, b"\xc0\x7f")
    options = ("--text", TEXT, "--ctx", 64, "--chunks", 2, "--prompt", "Once", "--skip", "tokens,template")
    result = command(cli, "report", broken, "--reference", EXAMPLE, *options, "--json", "-")
    assert result.code == 1
    failed = {gate["gate"]: gate["what"] for gate in result.json["gates"]["results"] if gate["status"] == "fail"}
    assert set(failed) == {"weights", "perplexity", "kl", "generate", "kl_mean"}
    assert "not_finite_perplexity" in failed["perplexity"]
    assert "blk.3.ffn_down.weight" in failed["weights"]


def test_a_check_that_is_none_is_refused(folder: Path, command: Command) -> None:
    result = command(cli, "report", folder / "q4.gguf", "--reference", EXAMPLE, "--skip", "weight")
    assert (result.code, "no such check" in result.err) == (2, True)
    missing = command(cli, "report", folder / "q4.gguf", "--reference", EXAMPLE)
    assert (missing.code, "no --text" in missing.err) == (2, True)


def test_the_page_needs_nothing_else(folder: Path, report: dict[str, Any]) -> None:
    page = (folder / "report.html").read_text()
    assert page == render_page(report)
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", page)
    assert page.count('class="plot"') == 5
    assert "bf16.gguf" in page


def test_what_a_checkpoint_says_is_text_in_the_page(report: dict[str, Any]) -> None:
    hostile = "<script>alert(1)</script>$\\frac{}"
    report["generate"]["results"][0]["text"] = hostile
    report["artifacts"][0]["type"] = hostile
    assert "<script>" not in render_page(report)


def test_the_verdict_and_its_reason_come_first(report: dict[str, Any]) -> None:
    assert "Not fit" not in render_page(report)
    finding = {"check": "weights", "kind": "swapped", "subject": "x", "what": "layer 7 & x are y", "severity": "fail"}
    report["weights"]["results"][0]["findings"].append(finding)
    report["gates"]["results"] = [asdict(gate) for gate in apply_gates(report, {})]
    before_the_tables = render_page(report).split("<table")[0]
    assert "Not fit to publish: 1 of 2 fails" in before_the_tables
    assert re.search(r"<b>bf16.gguf</b>: weights: swapped: layer 7 &amp; x are y", before_the_tables)


def test_what_is_the_same_for_all_is_shown_once(report: dict[str, Any]) -> None:
    finding = {"check": "weights", "kind": "odd", "subject": "x", "what": "x is odd", "severity": "warn"}
    for result in report["weights"]["results"]:
        result["findings"].append(finding)
    report["gates"]["results"] = [asdict(gate) for gate in apply_gates(report, {})]
    page = render_page(report)
    # Once as a gate, once as a finding.
    assert page.count("x is odd") == 2
    assert page.count("all artifacts") >= 2


def test_a_text_without_numbers_is_the_worst(report: dict[str, Any]) -> None:
    good = report["kl"]["results"][-1]
    bad = {**good, "text": "bad.txt", "kl": dict.fromkeys(good["kl"]), "perplexity": None, "delta_p_rms": None}
    report["kl"]["results"] = [good, bad, good]
    for grouping in ("by_layer", "by_kind"):
        report["weights"]["results"][-1][grouping][-1]["relative_rmse"] = None
    assert summarize(report)[-1]["worst"] is bad
    assert "not a number" in render_page(report)


def test_many_artifacts_are_told_apart(report: dict[str, Any]) -> None:
    names = [f"/some/folder {number}/<b>{'x' * 80}-{number % 3}.gguf" for number in range(30)]
    for check in ("weights", "kl"):
        row = report[check]["results"][-1]
        report[check]["results"] = [{**row, "file": name} for name in names]
    report["artifacts"] = [{**report["artifacts"][-1], "file": name} for name in names]
    report["gates"]["results"] = []
    page = render_page(report)
    assert "<b>xxx" not in page
    assert all(f"folder {number}/&lt;b&gt;" in page for number in range(30))
    for title, _, svg in plots(report):
        looks = re.findall(r'<use xlink:href="#([^"]+)"[^>]* style="fill: (#\w+)', svg)
        assert len(set(looks)) >= 30, title


def test_names_are_as_short_as_they_can_be() -> None:
    cached = f"/home/me/hub/models--mistralai--Small-1/snapshots/{'0123456789' * 4}"
    names = short_names(["/a/b/model.gguf", "/a/c/model.gguf", "other.gguf", "/", ".", cached])
    assert list(names.values()) == ["b/model.gguf", "c/model.gguf", "other.gguf", "/", ".", "mistralai/Small-1@0123456"]
    assert shortened("short") == "short"
    assert len(shortened("a" * 30 + "b" * 30, 20)) == 20
    assert shortened("a" * 30 + "-Q4_K_M.gguf", 20).endswith("-Q4_K_M.gguf")


def test_a_check_that_an_artifact_did_not_go_through_is_no_gate(report: dict[str, Any]) -> None:
    first = report["artifacts"][0]["file"]
    report["generate"]["results"] = [row for row in report["generate"]["results"] if row["file"] != first]
    report["gates"]["results"] = [asdict(gate) for gate in apply_gates(report, {})]
    without, other = summarize(report)
    assert ("generate" in without["checks"], "generate" in other["checks"]) == (False, True)
    assert render_page(report)


@pytest.mark.parametrize("option", ["--html", "--json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_outputs_are_looked_at_first(
    option: str, kind: str, folder: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    if kind == "folder":
        output.mkdir()
    elif kind == "pipe":
        os.mkfifo(output)
    else:
        output.touch()
        output = output / "report"
    monkeypatch.setattr(make, "make_report", lambda *_: pytest.fail("it was run"))
    result = command(cli, "report", folder / "q4.gguf", "--reference", EXAMPLE, "--text", TEXT, option, output)
    assert result.code == 4
    assert "hint: " in result.err
    assert (tmp_path / "output").is_fifo() == (kind == "pipe")


@pytest.mark.parametrize(
    ("html", "json_file", "words"),
    [("a", "a", "a would overwrite"), ("q4.gguf", "b", "q4.gguf would overwrite"), ("-", "b", "only --json")],
)
def test_outputs_replace_nothing_that_counts(
    html: str, json_file: str, words: str, folder: Path, command: Command, tmp_path: Path
) -> None:
    outputs = [Path("-") if name == "-" else (folder if "." in name else tmp_path) / name for name in (html, json_file)]
    arguments = ("--reference", EXAMPLE, "--text", TEXT, "--html", outputs[0], "--json", outputs[1])
    result = command(cli, "report", folder / "q4.gguf", *arguments)
    assert (result.code, words in result.err) == (2, True)


def test_layouts_side_by_side_and_a_file_named_twice(folder: Path, command: Command, tmp_path: Path) -> None:
    assert command(mconv, "hf-to-megatron", EXAMPLE, tmp_path / "megatron").code == 0
    files = (folder / "bf16.gguf", EXAMPLE, tmp_path / "megatron", folder / "bf16.gguf")
    options = ("--skip", "weights,perplexity,kl", "--prompt", "Once", "--hf-config", EXAMPLE, "--json", "-")
    result = command(cli, "report", *files, "--reference", folder / "bf16.gguf", *options)
    assert result.code == 0, result.err
    assert [artifact["file"] for artifact in result.json["artifacts"]] == [str(file) for file in files[:3]]
    answers = {(row["file"], row["template"]): row for row in result.json["generate"]["results"] if not row["sampling"]}
    assert {answers[str(file), True]["text"] for file in files} == {answers[str(files[0]), True]["text"]}
    assert all(answers[str(file), False]["agreement"]["common_prefix"] > 0 for file in files[1:3])


def test_the_plot_of_sizes_stands_alone(report: dict[str, Any]) -> None:
    from xml.etree import ElementTree

    plot = size_plot(report)
    assert plot is not None
    assert plot == size_plot(report)
    root = ElementTree.fromstring(alone(plot))
    assert root.tag.endswith("svg")
    assert {"BF16", "Q4_K_M"} <= set(root.itertext())


@pytest.mark.oracle
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("scheme", "number"), [("light", 1), ("dark", 0)])
def test_chromium_shows_the_page(scheme: str, number: int, folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    flags += [f"--blink-settings=preferredColorScheme={number}", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--window-size=1200,1600", f"--screenshot={picture}"]
    subprocess.run(
        [str(CHROMIUM), *flags, (folder / "report.html").as_uri()], check=True, capture_output=True, timeout=120
    )
    pixels = np.asarray(Image.open(picture).convert("L"), np.int16)
    ground = int(np.median(pixels))
    assert ground > 240 if scheme == "light" else ground < 40
    # Text and plots stand out from the ground all the way down.
    strips = np.array_split(np.abs(pixels - ground) > 100, 8)
    assert all(strip.sum() > 200 for strip in strips)
