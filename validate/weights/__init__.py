"""Compare every tensor of an artifact with its reference, without running a model."""
