"""Mistral's Tekken with its first tokens only: what it cuts is coarser, and it is read in a tenth of the time."""

from __future__ import annotations

import json
from pathlib import Path

from support.checkpoints_tokenizers import packaged, tekken_folder, write_config

SIZE = 6000
SPECIAL = {"v3": (), "v7": (), "v11": ("[ARGS]", "[CALL_ID]"), "v13": ("[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")}


def small_tekken(folder: Path, version: str) -> Path:
    """A checkpoint's folder with a tekken.json of this version, special tokens included."""
    content = json.loads(packaged("tekken_240911.json").read_text(encoding="utf-8"))
    config = {**content["config"], "version": version, "default_vocab_size": SIZE}
    vocab = content["vocab"][: SIZE - config["default_num_special_tokens"]]
    tekken_folder(folder, version, SPECIAL[version], config=config, vocab=vocab)
    return write_config(folder, SIZE)
