"""mrelease: from a recipe to a published repository."""
