"""File formats as bytes: which tensors lie where. They know nothing of models."""
