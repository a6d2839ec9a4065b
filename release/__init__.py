"""mrelease: build, check and publish a release from a recipe."""
