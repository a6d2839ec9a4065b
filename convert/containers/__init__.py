"""File formats as bytes: which tensors are stored where. They know nothing about models."""
