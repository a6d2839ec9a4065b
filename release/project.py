"""A recipe, and the folder of its release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mconv.convert.errors import UsageError
from mconv.release.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Project:
    """A recipe and the folder of its release.

    Attributes:
        path: the file of the recipe.
        text: the content of the file.
        recipe: the recipe as a value.
        folder: the folder of the release.
    """

    path: Path
    text: str
    recipe: Recipe
    folder: Path

    def require_repository(self) -> str:
        """The repository to publish to.

        Raises:
            UsageError: the recipe does not name one.
        """
        if self.recipe.repository is None:
            raise UsageError(f"{self.path.name}: repository is missing", "add repository = 'ORGANIZATION/NAME'")
        return self.recipe.repository


def open_project(path: Path, folder: Path | None) -> Project:
    """Read a recipe.

    Args:
        folder: the folder of the release. Default: NAME-GGUF beside the recipe.

    Raises:
        UsageError, OSError: see `load_recipe`.
    """
    recipe, text = load_recipe(path)
    return Project(path, text, recipe, folder or path.parent / f"{recipe.name}-GGUF")
