"""The commands of mrelease, one file each. To add a command, add a file."""
