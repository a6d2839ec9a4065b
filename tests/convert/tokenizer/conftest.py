"""A tokenizer that takes long to make."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.checkpoints_tokenizers import packaged, tekken_json_folder
from support.shared import built_once


@pytest.fixture(scope="session")
def tekken_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Mistral's Tekken as transformers writes it. Not to be changed."""
    source = packaged("tekken_240911.json")
    return built_once(tmp_path_factory, "tekken-json", lambda folder: tekken_json_folder(folder, source, 131072))
