"""How far an artifact is from its reference on a text: perplexity and KL divergence."""
