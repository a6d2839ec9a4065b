"""Whether conversations become the tokens that they become in the reference."""
