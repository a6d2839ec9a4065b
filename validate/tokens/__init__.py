"""Whether text becomes the ids that it becomes in the reference."""
