"""The commands of mval: one file each. Adding a command is adding a file."""
