"""Sources on the Hugging Face Hub: `ORGANIZATION/NAME[@REVISION]` in place of a path."""

from __future__ import annotations

from pathlib import Path


def resolve_source(path: Path) -> Path:
    """The path itself, or the folder of the Hub's cache that holds what it names.

    What exists on disk is never looked up. A name that ends in .gguf or .kld is a file that is not there.

    Raises:
        PublishError: the Hub refused or could not be reached.
        SourceError: the Hub is switched off and its cache lacks the model, or the repository holds no weights to read.
        DiskError: no room for the download.
    """
    from mconv.convert.hub.sources import download, parse_source

    source = None if path.exists() else parse_source(str(path))
    return path if source is None else download(source)
