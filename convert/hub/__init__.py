"""Sources on the Hugging Face Hub: `ORGANIZATION/NAME[@REVISION]` in place of a path."""

from __future__ import annotations

from pathlib import Path


def resolve_source(path: Path) -> Path:
    """The path itself, or the folder in the Hub's cache with the model that it names.

    A path that exists is never looked up on the Hub. A name that ends in .gguf or .kld is taken for a missing file.

    Raises:
        PublishError: the Hub refused the request or could not be reached.
        SourceError: HF_HUB_OFFLINE is set and the cache lacks the model, or the repository has no weights we can read.
        DiskError: not enough room for the download.
    """
    from mconv.convert.hub.sources import download, parse_source

    source = None if path.exists() else parse_source(str(path))
    return path if source is None else download(source)
