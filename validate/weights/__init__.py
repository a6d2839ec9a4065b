"""Every tensor of an artifact against its reference; no model is run."""
