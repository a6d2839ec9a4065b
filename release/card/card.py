"""Render the model card: README.md, shown first by the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert import __version__
from mconv.quantize import ggml
from mconv.release.card.front_matter import base_model, card_metadata, licence_of
from mconv.release.card.markdown import Markdown, code_block, code_span, escape, link
from mconv.release.card.numbers import check_rows, has_plot, table_rows, text_rows
from mconv.release.card.prompt import prompt_format
from mconv.release.card.runners import runners
from mconv.release.checking import failed_gates
from mconv.release.inputs import ReleaseInputs
from mconv.release.project import Project
from mconv.release.small_files import RECIPE
from mconv.release.weights import TypeFiles

PLOT = "size-vs-kl.svg"
_TEMPLATES = Path(__file__).parent


def render_card(
    project: Project,
    inputs: ReleaseInputs,
    types: Sequence[TypeFiles],
    report: Mapping[str, Any],
    accepted: str | None,
    *,
    has_licence: bool,
) -> bytes:
    """The content of the card.

    Args:
        report: the content of validation.json.
        accepted: the reason for accepting failed gates.
        has_licence: whether the text of the licence is part of the release.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    recipe = project.recipe
    recommended = next(one for one in types if one.type == recipe.recommended_type)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # Values inserted into the page are escaped as plain text, unless they are `Markdown`.
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"block": code_block, "code": code_span}
    licence, licence_name, licence_link = licence_of(recipe, inputs)
    page = environment.get_template("card.md.j2").render(
        metadata=Markdown(ModelCardData(**card_metadata(recipe, inputs)).to_yaml().strip()),
        recipe=recipe,
        recipe_file=RECIPE,
        repository=recipe.repository,
        folder=project.folder.name,
        source=inputs.stem,
        base=base_model(recipe, inputs),
        commit=inputs.text("mconv.source.revision"),
        rows=[*table_rows(types, report, recipe.recommended_type)],
        texts=text_rows(report),
        checks=[*check_rows(types, report)],
        failed=failed_gates(report),
        accepted=accepted,
        plot=PLOT if has_plot(report) else None,
        runners=runners(recipe, inputs, recommended),
        recommended=recommended,
        split=[one.type for one in types if len(one.parts) > 1],
        prompt=prompt_format(inputs),
        sampling=inputs.sampling,
        matrix=inputs.matrix,
        fallbacks=[one.quantization for one in types if one.quantization.fallbacks],
        limits=inputs.form.notes,
        original_runner="transformers" if inputs.path.is_dir() else "llama.cpp",
        licence=link(licence_name or licence, licence_link) if licence else None,
        has_licence=has_licence,
        versions={"mconv": __version__, "ggml": ggml.version()},
    )
    return page.encode()
