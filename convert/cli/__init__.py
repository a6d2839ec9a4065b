"""The command line of mconv, and what all command lines share."""
