"""Download checkpoints: only the files that are read, all from one commit, into the Hub's own cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.errors import DiskError, SourceError
from mconv.convert.hub.client import hub_client
from mconv.convert.hub.errors import explain
from mconv.convert.hub.patience import Patience, persist
from mconv.convert.layouts import layouts
from mconv.convert.reporting import format_bytes, note

# A name has letters, digits, and single dots, dashes and underscores between them (huggingface_hub's
# utils/_validators.py). What follows @ is a branch, a tag, a pull request or a commit.
_NAME = r"(?![^@/]*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_SOURCE = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9._/-]*))?")
# The user is waiting at the command line.
_PATIENCE = Patience(attempts=3)


@dataclass(frozen=True)
class HubSource:
    """A model on the Hub.

    Attributes:
        repo: `ORGANIZATION/NAME`.
        revision: branch, tag or commit; None is the main branch.
    """

    repo: str
    revision: str | None


def parse_source(text: str) -> HubSource | None:
    """Parse `ORGANIZATION/NAME[@REVISION]`; None for a text of another form."""
    match = _SOURCE.fullmatch(text)
    if not match or text.endswith((".gguf", ".kld", ".git")):
        return None
    return HubSource(match["repo"], match["revision"])


def _wanted() -> tuple[str, ...]:
    """Patterns of every file that some layout reads from the Hub."""
    return tuple(dict.fromkeys(pattern for layout in layouts().values() for pattern in layout.hub_files))


def download(source: HubSource) -> Path:
    """Fetch the files that are missing in the cache.

    Returns:
        the snapshot's folder, whose name is the commit.

    Raises:
        PublishError, SourceError, DiskError: see `resolve_source`.
    """
    folder = _fetch(source, _wanted(), check=True)
    note(f"{source.repo} at commit {folder.name}")
    return folder


def download_card(source: HubSource) -> Path:
    """Fetch the card only.

    Returns:
        the snapshot's folder, whose name is the commit; the card may be missing there.

    Raises:
        PublishError, SourceError: see `mconv.convert.hub.errors.explain`.
    """
    return _fetch(source, ("README.md",), check=False)


def _fetch(source: HubSource, wanted: Sequence[str], *, check: bool) -> Path:
    from huggingface_hub import is_offline_mode, resolve_revision, snapshot_download

    def action() -> Path:
        # Use one commit for the listing, the check and the download, even if somebody pushes in between.
        commit = resolve_revision(source.repo, revision=source.revision).resolved
        if check and not is_offline_mode():
            _check_files(source, commit)
        return Path(snapshot_download(source.repo, revision=commit, allow_patterns=list(wanted)))

    with hub_client(_PATIENCE):
        try:
            return persist(action, _PATIENCE, source.repo)
        except Exception as error:
            raise explain(error, source.repo, source.revision) from error


def _check_files(source: HubSource, commit: str) -> None:
    """Check that the repository has weights we can read, and that the disk has room for them."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(source.repo, revision=commit, allow_patterns=list(_wanted()), dry_run=True)
    except DryRunError:
        # There is no listing; the download itself will say why, or use the cache.
        return
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise SourceError(
            f"{source.repo} has no model*.safetensors",
            "choose a repository with safetensors weights; .bin files can run code, GGUF files are given by path",
        )
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    if needed > free:
        raise DiskError(
            f"not enough room in {cache}: {format_bytes(needed)} needed, {format_bytes(free)} free",
            "free some space, or set HF_HOME to a folder on another disk",
        )
