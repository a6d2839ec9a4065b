"""mquant: assign a type to each tensor, and encode rows of weights as blocks."""
