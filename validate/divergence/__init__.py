"""Perplexity and KL divergence of an artifact from its reference on a text."""
