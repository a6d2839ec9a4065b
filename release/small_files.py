"""The small files of a release that do not depend on measurements: recipe, licence, importance matrix, runner files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.errors import UsageError
from mconv.convert.layouts.gguf.architecture import full_key
from mconv.convert.model.fields import CONTEXT
from mconv.convert.reporting import note
from mconv.release.inputs import ReleaseInputs
from mconv.release.project import Project
from mconv.release.recipe import Recipe, portable_text
from mconv.release.weights import TypeFiles

LICENCE = "LICENSE"
RECIPE = "recipe.toml"
MODELFILE = "Modelfile"
OUMI = "oumi-inference.yaml"
# A longer context takes more memory; users who need it can raise it.
_OUMI_CONTEXT = 8192
_OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
_OUMI_SETTINGS = ("temperature", "top_p", "min_p")


def make_small_files(project: Project, inputs: ReleaseInputs, types: Sequence[TypeFiles]) -> dict[str, bytes]:
    """The small files, name to content.

    Raises:
        UsageError: the importance matrix has a name that cannot be published.
        OSError: the licence or the importance matrix cannot be read.
    """
    recipe = project.recipe
    files = {RECIPE: portable_text(project.text).encode()}
    licence = _licence(recipe, inputs)
    if licence is not None:
        files[LICENCE] = licence.read_bytes()
    if recipe.imatrix is not None:
        files[_matrix_name(recipe.imatrix, types)] = recipe.imatrix.read_bytes()
    recommended = next(one for one in types if one.type == recipe.recommended_type)
    if "ollama" in recipe.extras:
        if len(recommended.parts) == 1:
            files[MODELFILE] = _modelfile(inputs, recommended).encode()
        else:
            note(f"no {MODELFILE}: Ollama cannot load split models, and {recommended.type} is split")
    if "oumi" in recipe.extras:
        files[OUMI] = _oumi(recipe, inputs, recommended).encode()
    return files


def _licence(recipe: Recipe, inputs: ReleaseInputs) -> Path | None:
    """The file of the licence text: from the recipe, otherwise from the source; never generated."""
    if recipe.licence_file is not None:
        return recipe.licence_file
    found = [path for name, path in inputs.files.items() if re.fullmatch(r"LICENSE[\w.-]*", name)]
    for path in found:
        if _belongs_to(path, inputs.path):
            return path
        note(f"left out {path.name} of the source, which is a link out of its folder")
    return None


def _belongs_to(path: Path, folder: Path) -> bool:
    """Whether a file is in its folder, or is one of the folder's blobs in the Hub's cache."""
    blobs = folder.resolve().parent.parent / "blobs"
    return path.resolve().is_relative_to(folder.resolve()) or path.resolve().parent == blobs


def _matrix_name(path: Path, types: Sequence[TypeFiles]) -> str:
    """The name of the importance matrix, which the GGUF files mention."""
    taken = {name for one in types for name in one.parts}
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*\.(gguf|dat)", path.name, re.ASCII) or path.name in taken:
        raise UsageError(
            f"the importance matrix cannot be published as {path.name!r}",
            "rename it: letters, digits, dots and dashes, then .gguf or .dat; not the name of a model file",
        )
    return path.name


def _modelfile(inputs: ReleaseInputs, recommended: TypeFiles) -> str:
    lines = [f"FROM ./{recommended.first}"]
    lines += [f"PARAMETER {_OLLAMA_NAMES.get(name, name)} {value:g}" for name, value in inputs.sampling.items()]
    return "\n".join(lines) + "\n"


def _oumi(recipe: Recipe, inputs: ReleaseInputs, recommended: TypeFiles) -> str:
    import yaml

    tokenizer = recipe.base_model or inputs.repository
    trained = inputs.metadata(full_key(CONTEXT.gguf[0], str(inputs.text("general.architecture"))))
    context = min(trained, _OUMI_CONTEXT) if isinstance(trained, int) else _OUMI_CONTEXT
    model: Mapping[str, Any] = {
        "model_name": recipe.repository or f"./{recommended.first}",
        **({"tokenizer_name": tokenizer} if tokenizer else {}),
        "model_max_length": context,
        **({"model_kwargs": {"filename": recommended.first}} if recipe.repository else {}),
    }
    settings = {name: value for name, value in inputs.sampling.items() if name in _OUMI_SETTINGS}
    content = {"model": model, "generation": {"max_new_tokens": context // 2, **settings}, "engine": "LLAMACPP"}
    return f"# oumi infer -i -c {OUMI}\n" + yaml.safe_dump(content, sort_keys=False)
