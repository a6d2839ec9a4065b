"""The card of a model on the Hub, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convert.hub.client import hub_client
from convert.hub.errors import explain
from convert.hub.patience import Patience, persist

if TYPE_CHECKING:
    from convert.hub.sources import HubSource

_PATIENCE = Patience(attempts=3)


def fetch_card(source: HubSource) -> Path:
    """Fetch the card into the Hub's cache.

    Returns:
        the folder of the snapshot, which is named by its commit; the card may be missing there.

    Raises:
        PublishError, SourceError: see `convert.hub.errors.explain`.
    """
    with hub_client(_PATIENCE):
        try:
            return persist(lambda: _fetch(source), _PATIENCE, source.repo)
        except Exception as error:
            raise explain(error, source.repo, source.revision) from error


def _fetch(source: HubSource) -> Path:
    from huggingface_hub import resolve_revision, snapshot_download

    commit = resolve_revision(source.repo, revision=source.revision).resolved
    return Path(snapshot_download(source.repo, revision=commit, allow_patterns=["README.md"]))
