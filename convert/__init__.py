"""mconv: convert checkpoints of the Mistral family between layouts, row by row, without changing a value."""

__version__ = "0.1.0"
