"""A model, independent of any layout."""
