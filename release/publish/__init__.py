"""Publish a release folder to the Hugging Face Hub."""
