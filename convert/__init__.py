"""mconv: checkpoints of the Mistral family, moved between layouts row by row, never changing a value."""

__version__ = "0.1.0"
