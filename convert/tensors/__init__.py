"""Tensors as sources of rows, the order of rows, and encodings."""
