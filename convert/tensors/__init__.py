"""Tensors as places that rows are read from, their order, and their encodings."""
