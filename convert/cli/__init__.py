"""The command line of mconv, and code that all command lines share."""
