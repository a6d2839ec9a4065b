"""Plans of files to write, and the code that runs them."""
