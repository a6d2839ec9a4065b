"""Check that text becomes the same token ids as in the reference."""
