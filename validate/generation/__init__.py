"""What a model writes, and what can be seen to be wrong with it."""
