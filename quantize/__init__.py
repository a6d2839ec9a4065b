"""mquant: what type each tensor gets, and turning rows of weights into blocks."""
