"""The card, the provenance and the small files: valid, true to validation.json, and safe against what a source says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mconv.convert.errors import SourceError
from mconv.inference.amx import use_extra_buffers
from mconv.release.card.card import render_card
from mconv.release.card.markdown import code_block, code_span, escape, link
from mconv.release.cli import cli
from mconv.release.inputs import open_inputs
from mconv.release.project import open_project
from mconv.release.signing import sign
from mconv.release.small_files import make_small_files
from mconv.release.weights import plan_types

from support.command_line import Command
from support.releases import MODEL, published, write_recipe

NAME = "tiny-mistral-GGUF"
HOSTILE = "</code><script>alert(1)</script> | ` **b** [x](javascript:alert(1)) ![](http://e.vil/x.png) \u202e\x1b[31m"


@pytest.fixture(scope="module")
def card(released: Path) -> ModelCard:
    """As huggingface_hub reads it."""
    return ModelCard((released.parent / NAME / "README.md").read_text())


@pytest.fixture(scope="module")
def report(released: Path) -> dict[str, Any]:
    """The content of validation.json."""
    return json.loads((released.parent / NAME / "validation.json").read_text())


def html(markdown: str) -> str:
    """As a page of CommonMark with tables, raw HTML let through as it comes."""
    return MarkdownIt("commonmark", {"html": True, "linkify": True}).enable("table").render(markdown)


def render(recipe: Path, report: dict[str, Any], accepted: str | None = None) -> str:
    """The card of a recipe, without building it."""
    project = open_project(recipe, None)
    inputs = open_inputs(project)
    types = plan_types(project.recipe, inputs)
    return render_card(project, inputs, types, report, accepted, has_licence=False).decode()


def test_its_metadata_is_valid(card: ModelCard) -> None:
    assert card.data.to_dict() == {
        "language": ["en"],
        "library_name": "gguf",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "quantized", "mistral", "synthetic"],
    }


def test_a_base_model_is_related(report: dict[str, Any], tmp_path: Path) -> None:
    members = {"base_model": "rosa/tiny", "quantized_by": "rosa", "tags": ["toy"], "languages": ["en", "fr"]}
    text = render(write_recipe(tmp_path / "r.toml", **members, licence="mit"), report)
    assert ModelCard(text).data.to_dict() == {
        "base_model": "rosa/tiny",
        "base_model_relation": "quantized",
        "language": ["en", "fr"],
        "library_name": "gguf",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "quantized_by": "rosa",
        "tags": ["gguf", "quantized", "toy"],
    }
    assert "vllm serve rosa/tiny-mistral-GGUF:Q4_K_M --tokenizer rosa/tiny" in text


def test_every_number_of_the_table_is_measured(card: ModelCard, report: dict[str, Any]) -> None:
    rows = {}
    for line in card.text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if linked := re.fullmatch(r"\[`(.+\.gguf)`\]\(\1\)", cells[0]):
            rows[linked[1]] = cells[1:]
    assert list(rows) == ["tiny-mistral-Q8_0.gguf", "tiny-mistral-Q4_K_M.gguf"]
    for artifact in report["artifacts"]:
        (kl,) = [row for row in report["kl"]["results"] if row["file"] == artifact["file"]]
        kind, size, bits, perplexity, mean, tail, same, note = rows[artifact["file"]]
        value, error = map(float, perplexity.split(" ± "))
        assert (kind, size) == (artifact["type"], f"{artifact['bytes'] / 1e6:.1f} MB")
        assert float(bits) == pytest.approx(artifact["bits_per_weight"], abs=0.005)
        assert value == pytest.approx(kl["perplexity"], abs=5e-5)
        assert error == pytest.approx(kl["perplexity_standard_error"], abs=5e-5)
        assert float(mean) == pytest.approx(kl["kl"]["mean"], abs=5e-7)
        assert float(tail) == pytest.approx(kl["kl"]["p99_9"], abs=5e-7)
        assert float(same.rstrip("%")) == pytest.approx(100 * kl["same_top"], abs=0.005)
        assert ("**recommended**" in note) == (kind == "Q4_K_M")
    (original,) = [row for row in report["perplexity"]["results"] if row["file"] == report["reference"]]
    assert f"is {original['perplexity']:.4f} ± {original['standard_error']:.4f}." in card.text


def test_what_was_found_is_named(released: Path, report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    for gate in changed["gates"]["results"]:
        gate["status"] = "pass"
        if gate["gate"] in ("tokens", "generate"):
            gate |= {"status": "warn", "what": "odd_words: 'x' and more of it"}
    changed["gates"]["results"][-1] |= {"gate": "generate", "status": "fail", "what": "loop: for ever"}
    text = render(released, changed)
    assert "| warn: odd words (Q4_K_M, Q8_0) |" in text
    assert "| warn: odd words (Q4_K_M, Q8_0); fail: loop (Q8_0) |" in text


def test_a_licence_of_its_own_is_linked(report: dict[str, Any], tmp_path: Path) -> None:
    address = "https://mistral.ai/licenses/MRL-0.1.md"
    own = {"licence": "other", "licence_name": "mrl", "licence_link": address}
    assert f": [mrl]({address})." in render(write_recipe(tmp_path / "r.toml", **own), report)
    assert link("mrl", "javascript:alert(1)") == "mrl (javascript:alert(1))"
    assert link("a|b", None) == "a\\|b"


def test_numbers_follow_validation_json(released: Path, report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    for row in changed["kl"]["results"]:
        row["kl"]["mean"], row["same_top"] = 0.125, None
    changed["artifacts"][0]["bytes"] = 123_000_000
    text = render(released, changed)
    assert "| 123.0 MB |" in text and "| 0.125000 |" in text and "| not a number |" in text
    assert f"{report['kl']['results'][0]['kl']['mean']:.6f}" not in text


def test_each_program_has_its_command(card: ModelCard) -> None:
    for line in (
        "hf download rosa/tiny-mistral-GGUF tiny-mistral-Q4_K_M.gguf --local-dir .",
        "llama-server -hf rosa/tiny-mistral-GGUF:Q4_K_M",
        "ollama run hf.co/rosa/tiny-mistral-GGUF:Q4_K_M",
        "lms get https://huggingface.co/rosa/tiny-mistral-GGUF@Q4_K_M",
        'filename="tiny-mistral-Q4_K_M.gguf",',
        "vllm serve rosa/tiny-mistral-GGUF:Q4_K_M",
        "oumi infer -i -c oumi-inference.yaml",
    ):
        assert f"\n{line}\n" in card.text or line in card.text, line


WITHOUT_EXTRA_BUFFERS = """
import llama_cpp.llama_cpp as library
defaults = library.llama_model_default_params
def safe_params():
    params = defaults()
    params.use_extra_bufts = False
    return params
library.llama_model_default_params = safe_params
"""


def test_the_python_on_it_runs(released: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """As it stands on the card of a release that goes nowhere."""
    text = render(write_recipe(tmp_path / "r.toml", repository=None), report)
    (program,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert 'Llama("tiny-mistral-Q4_K_M.gguf", n_ctx=0)' in program
    folder = released.parent / NAME
    quick = program.replace('"Hello"}]', '"Hello"}], max_tokens=4')
    # Where AMX does not work, llama-cpp-python dies of it, whatever the program.
    safe = "" if use_extra_buffers() else WITHOUT_EXTRA_BUFFERS
    ended = subprocess.run([sys.executable, "-c", safe + quick], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "rosa" not in text and "hf download" not in text


def test_the_prompt_format_is_the_models_own(card: ModelCard) -> None:
    assert "<s>[INST] {first question}[/INST] {first answer}</s>[INST] {second question}[/INST]" in card.text
    assert "no place for a system prompt" in card.text


def test_recommended_settings_are_told_and_used(report: dict[str, Any], tmp_path: Path) -> None:
    source = copy_source(tmp_path)
    settings = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings))
    recipe = write_recipe(tmp_path / "r.toml", source="source")
    text = render(recipe, report)
    assert "| temperature | 0.7 |" in text and "| top_p | 0.95 |" in text
    assert '--override-generation-config \'{"temperature": 0.7' in text
    project = open_project(recipe, None)
    inputs = open_inputs(project)
    files = make_small_files(project, inputs, plan_types(project.recipe, inputs))
    assert files["Modelfile"].decode().splitlines() == [
        "FROM ./tiny-mistral-Q4_K_M.gguf",
        "PARAMETER temperature 0.7",
        "PARAMETER top_k 40",
        "PARAMETER top_p 0.95",
        "PARAMETER repeat_penalty 1.1",
    ]
    assert yaml.safe_load(files["oumi-inference.yaml"]) == {
        "model": {
            "model_name": "rosa/tiny-mistral-GGUF",
            "model_max_length": 512,
            "model_kwargs": {"filename": "tiny-mistral-Q4_K_M.gguf"},
        },
        "generation": {"max_new_tokens": 256, "temperature": 0.7, "top_p": 0.95},
        "engine": "LLAMACPP",
    }


def test_the_provenance_names_all_that_was_read_and_made(released: Path) -> None:
    folder = released.parent / NAME
    statement = json.loads((folder / "provenance.json").read_text())
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert subjects.keys() == published(folder).keys() - {"provenance.json", "SHA256SUMS"}
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert definition["externalParameters"].keys() == {"recipe"}
    assert definition["externalParameters"]["recipe"]["types"] == ["Q4_K_M", "Q8_0"]
    read = {one["name"]: one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    assert {f"source/{path.name}" for path in MODEL.iterdir()} | {"text/tiny-mistral-eval.txt"} == read.keys()
    assert {"mconv", "ggml", "llama-cpp-python", "transformers"} <= details["builder"]["version"].keys()
    # The sums are those of the programs that everybody has.
    paths = [folder / name for name in subjects] + [MODEL / "model.safetensors"]
    lines = subprocess.run(["sha256sum", *paths], capture_output=True, text=True, check=True).stdout.splitlines()
    sums = {Path(line[66:]).name: line[:64] for line in lines}
    assert sums.pop("model.safetensors") == read["source/model.safetensors"]
    assert sums == subjects


def test_the_licence_is_the_sources_or_none(tmp_path: Path) -> None:
    source = copy_source(tmp_path)

    def files() -> dict[str, bytes]:
        project = open_project(write_recipe(tmp_path / "r.toml", source="source"), None)
        inputs = open_inputs(project)
        return make_small_files(project, inputs, plan_types(project.recipe, inputs))

    assert "LICENSE" not in files()
    (source / "LICENSE.md").write_text("Yours.")
    assert files()["LICENSE"] == b"Yours."
    # A link may lead to anything of this machine, and what it leads to would be published.
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE.md").unlink()
    (source / "LICENSE.md").symlink_to("../secret")
    assert "LICENSE" not in files()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, released: Path) -> str:
    """The card of a source that tries everything."""
    folder = tmp_path_factory.mktemp("hostile")
    source = copy_source(folder)
    card = {"license": HOSTILE, "language": [HOSTILE, "en"], "tags": [HOSTILE, "---\nlicense: mit"]}
    card |= {"model_name": HOSTILE, "license_name": HOSTILE, "license_link": HOSTILE}
    (source / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    fence = "```\n````\n</textarea>" + HOSTILE
    settings["chat_template"] = json.dumps(fence) + "{{ bos_token }}{{ messages[0].content }}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    report = json.loads((released.parent / NAME / "validation.json").read_text())
    report["perplexity"]["results"][0]["text"] = report["kl"]["results"][0]["text"] = HOSTILE
    gate = report["gates"]["results"][0]
    report["gates"]["results"][0] = {**gate, "status": "fail", "what": HOSTILE}
    recipe = write_recipe(folder / "r.toml", source="source", quantized_by=HOSTILE.replace("\x1b", ""))
    return render(recipe, report, accepted=HOSTILE)


class TestAHostileSource:
    """Whatever a checkpoint says, the card shows it as text."""

    def test_its_metadata_says_no_more_than_it_may(self, hostile: str) -> None:
        data = ModelCard(hostile).data.to_dict()
        assert "license" not in data and data["language"] == ["en"]
        assert all("\n" not in tag and "\x1b" not in tag for tag in data["tags"])
        assert data["library_name"] == "gguf"

    def test_no_markup_comes_of_it(self, hostile: str) -> None:
        page = html(ModelCard(hostile).text)
        for tag in (
            "<script",
            '<img src="http',
            'javascript:alert(1)"',
            "<textarea",
            "</textarea",
            "<b>b",
            "<strong>b<",
        ):
            assert tag not in page, tag
        links = re.findall(r'href="([^"]*)"', page)
        assert all(link.startswith("https://huggingface.co/") or "/" not in link for link in links), links

    def test_nothing_invisible_is_in_it(self, hostile: str) -> None:
        assert not [c for c in hostile if not c.isprintable() and c != "\n"]

    def test_tables_keep_their_shape(self, hostile: str) -> None:
        page = html(ModelCard(hostile).text)
        for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
            rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
            assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1


@pytest.mark.parametrize("text", ["`", "``x```", "a|b", " ` ", HOSTILE, "\n", "x" * 300, "snake_case_", "_x_", "\\"])
def test_texts_are_shown_as_they_are(text: str) -> None:
    shown = " ".join("".join(c for c in text if c.isprintable() or c == "\n").split())
    plain = MarkdownIt("commonmark").enable("table")

    def content(kind: str, markdown: str) -> str:
        (token,) = [
            one for block in plain.parse(markdown) for one in [block, *(block.children or [])] if one.type == kind
        ]
        return token.content

    if shown and text != HOSTILE:
        (inline,) = [block for block in plain.parse(f"x {escape(text)} x") if block.type == "inline"]
        assert (
            "".join(one.content for one in inline.children or [] if one.type in ("text", "text_special"))
            == f"x {shown} x"
        )
        assert content("code_inline", f"| a |\n|---|\n| {code_span(text)} |") == shown
    assert content("fence", code_block(text)).removesuffix("\n").startswith(text[:5] if text.isprintable() else "")


def copy_source(folder: Path) -> Path:
    """The example, to be changed."""
    return Path(shutil.copytree(MODEL, folder / "source"))


class TestSigning:
    """Signatures of the OpenSSF Model Signing specification."""

    def test_without_the_package_it_is_said_at_once(
        self, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "model_signing", None)
        recipe = write_recipe(tmp_path / "r.toml")
        recipe.write_text(recipe.read_text() + 'sign = { private_key = "key.pem" }\n')
        (tmp_path / "key.pem").touch()
        ended = command(cli, "build", recipe)
        assert ended.code == 2
        assert "model-signing" in ended.err and "mconv[signing]" in ended.err
        assert not list(tmp_path.glob("*/*.gguf"))

    def test_the_signature_verifies_and_a_change_breaks_it(self, released: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(released.parent / NAME, tmp_path / NAME))
        for words in (
            "ecparam -name prime256v1 -genkey -noout -out key.pem",
            "ec -in key.pem -pubout -out key.pub",
        ):
            subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
        sign(folder, tmp_path / "key.pem")
        verify = "verify key . --signature model.sig --public_key ../key.pub --ignore_unsigned_files"
        command = [sys.executable, "-m", "model_signing", *verify.split()]
        # Whoever downloads it has no state of ours.
        (folder / "build-state.json").unlink()
        assert subprocess.run(command, cwd=folder).returncode == 0
        (folder / "Modelfile").write_text("FROM elsewhere\n")
        assert subprocess.run(command, cwd=folder).returncode != 0
        with pytest.raises(SourceError, match="is not a private key"):
            sign(folder, tmp_path / "key.pub")
