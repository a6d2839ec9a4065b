"""mval: is the artifact what the source was, and how much did it lose."""
