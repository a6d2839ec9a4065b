"""A recipe, and the folder that its release is built in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mconv.convert.errors import UsageError
from mconv.release.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Project:
    """What a command of mrelease works on.

    Attributes:
        path: the recipe's file.
        text: its content.
        recipe: the same as a value.
        folder: the release.
    """

    path: Path
    text: str
    recipe: Recipe
    folder: Path

    def require_repository(self) -> str:
        """Where the release goes.

        Raises:
            UsageError: the recipe does not say.
        """
        if self.recipe.repository is None:
            raise UsageError(f"{self.path.name} names no repository", "add repository = 'ORGANIZATION/NAME'")
        return self.recipe.repository


def open_project(path: Path, folder: Path | None) -> Project:
    """Read a recipe.

    Args:
        folder: where the release is built; NAME-GGUF beside the recipe where it is None.

    Raises:
        UsageError, OSError: see `load_recipe`.
    """
    recipe, text = load_recipe(path)
    return Project(path, text, recipe, folder or path.parent / f"{recipe.name}-GGUF")
