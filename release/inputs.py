"""The inputs of a release: the opened source, its files, the importance matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mconv.convert.errors import SourceError, UsageError
from mconv.convert.layouts import detect_layout
from mconv.convert.layouts.gguf.form import GgufForm, open_form
from mconv.convert.layouts.hf.names import CARD_FILES, CONFIG, GENERATION, INDEX, TOKENIZER_FILES, WEIGHT_FILES
from mconv.convert.model.provenance import SAMPLING
from mconv.quantize.imatrix import ImportanceMatrix, read_imatrix
from mconv.quantize.plan import file_stem
from mconv.release.project import Project
from mconv.release.recipe import from_home

if TYPE_CHECKING:
    from mconv.convert.hub.sources import HubSource

_SIDECARS = (CONFIG, GENERATION, *TOKENIZER_FILES, *CARD_FILES)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ReleaseInputs:
    """The inputs of a release; no weights have been read.

    Attributes:
        path: the local path of the source.
        repository: its name on the Hub; None if it came from a path.
        form: the source as an unquantized GGUF file.
        files: the files that it is read from, by a name that is the same on every machine.
        matrix: the importance matrix.
    """

    path: Path
    repository: str | None
    form: GgufForm
    files: Mapping[str, Path]
    matrix: ImportanceMatrix | None

    @property
    def stem(self) -> str:
        """The name of the model in its file names."""
        return file_stem(self.form)

    @property
    def weights(self) -> dict[str, Path]:
        """The files that contain weights; the content of the others ends up in the headers of the GGUF files."""
        return {name: path for name, path in self.files.items() if not _is_sidecar(PurePath(name))}

    @property
    def sampling(self) -> dict[str, float]:
        """The recommended settings, by their names in generation_config.json; empty if there are none."""
        known = {name: self.metadata(f"general.sampling.{key}") for name, (key, _) in SAMPLING.items()}
        # The file stores float32: 0.7 is read as 0.699999988.
        return {name: round(value, 6) for name, value in known.items() if _is_finite(value)}

    def text(self, key: str) -> str | None:
        """A text from the metadata; None if it is missing."""
        value = self.metadata(key)
        return value if isinstance(value, str) else None

    def metadata(self, key: str) -> Any:
        """The content of a key of the metadata of every file; None if it is missing."""
        value = self.form.metadata.get(key)
        return value.content if value else None


def open_inputs(project: Project) -> ReleaseInputs:
    """Open the source; download it first if it is on the Hub.

    Raises:
        UsageError: the source is not a path, and does not name a commit of a model on the Hub.
        SourceError, FormatError, MappingError: the source, the importance matrix or another file cannot be read.
        PublishError, DiskError: see `mconv.convert.hub.sources.download`.
    """
    recipe = project.recipe
    recipe.check_paths()
    path, hub = _locate(project)
    form = open_form(path, **recipe.reading)
    files = {_name(file, path, recipe.hf_config): file for file in _files(path, form)}
    matrix = read_imatrix(recipe.imatrix) if recipe.imatrix else None
    return ReleaseInputs(path, hub.repo if hub else None, form, dict(sorted(files.items())), matrix)


def _locate(project: Project) -> tuple[Path, HubSource | None]:
    said = project.recipe.source
    local = project.path.parent / from_home(said)
    if local.exists():
        return local, None
    from mconv.convert.hub.sources import download, parse_source

    hub = parse_source(said)
    if hub is None:
        raise SourceError(f"source {said}: no such file or folder", "paths are relative to the folder of the recipe")
    if not _COMMIT.fullmatch(hub.revision or ""):
        raise UsageError(
            f"source {said}: no such folder, and not a commit on the Hub",
            f"pin a commit: source = '{hub.repo}@' with its 40 digits, as mrelease init does",
        )
    return download(hub), hub


def _files(path: Path, form: GgufForm) -> Iterator[Path]:
    """Every file that is read. A folder may contain unrelated files too."""
    # A folder from the Hub may contain unrelated files beside the checkpoint.
    shared = bool(detect_layout(path).hub_files)
    for file in form.files:
        if file.is_file() and (not shared or _is_read(PurePath(file.name))):
            yield file
        elif file.is_dir():
            yield from (part for part in file.iterdir() if part.is_file())
    if path.is_dir():
        yield from path.glob("additional_chat_templates/*.jinja")


def _is_read(name: PurePath) -> bool:
    return _is_sidecar(name) or any(name.match(pattern) for pattern in (*WEIGHT_FILES, INDEX))


def _is_sidecar(name: PurePath) -> bool:
    return any(name.match(pattern) for pattern in _SIDECARS)


def _name(file: Path, source: Path, hf_config: Path | None) -> str:
    """A path relative to the checkpoint."""
    for base, prefix in ((source, ""), (hf_config, "hf_config/")):
        if base is not None and file.absolute().is_relative_to(base.absolute()):
            relative = file.absolute().relative_to(base.absolute())
            return prefix + (relative.as_posix() if relative.parts else file.name)
    return file.name


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
