"""The GGUF layout: one file, or one in parts."""
