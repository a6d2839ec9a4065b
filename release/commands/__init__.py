"""The commands of mrelease: one file each. Adding a command is adding a file."""
