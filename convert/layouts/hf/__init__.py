"""The Hugging Face layout: a folder with config.json, safetensors files and a tokenizer."""
