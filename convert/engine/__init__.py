"""Plans of files that are not written yet, and what carries them out."""
