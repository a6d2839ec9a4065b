"""What a model is, in the words of no layout."""
