"""mrelease init."""

from __future__ import annotations

from pathlib import Path

import click

from mconv.convert.cli.options import path_type, read_options
from mconv.convert.layouts.layout import ReadOptions
from mconv.convert.reporting import note


@click.command("init")
@click.argument("source", metavar="SRC")
@click.argument("recipe", type=path_type, metavar="[RECIPE.toml]", required=False)
@click.option("--text", "texts", multiple=True, type=path_type, metavar="FILE", help="What to measure on; repeatable.")
@read_options
def command(source: str, recipe: Path | None, texts: tuple[Path, ...], reading: ReadOptions) -> None:
    """Write a recipe to begin with, every member with its comment. Nothing is overwritten.

    SRC is a Hugging Face or Megatron folder, a GGUF file, or ORGANIZATION/NAME[@REVISION] on the Hub, which is pinned
    to the commit that it is at.

    \b
    Examples:
      mrelease init examples/tiny-mistral --text eval.txt
      mrelease init mistralai/Mistral-7B-Instruct-v0.3 mistral-7b.toml
    """
    from mconv.release.recipe_draft import draft_recipe, write_new

    path, text = draft_recipe(source, recipe, reading, texts)
    write_new(path, text)
    click.echo(f"wrote {path}")
    if not texts:
        note("its texts are empty: add the texts to measure on before you build")
