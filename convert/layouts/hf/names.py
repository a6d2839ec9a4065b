"""The names of the files in a Hugging Face folder."""

from __future__ import annotations

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("model*.safetensors",)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "*.model.v*")
"""Any of these files contains a vocabulary."""
TOKENIZER_FILES = (
    *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
CARD_FILES = ("README.md", "LICENSE*")
