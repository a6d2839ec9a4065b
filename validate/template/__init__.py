"""Check that conversations become the same tokens as in the reference."""
