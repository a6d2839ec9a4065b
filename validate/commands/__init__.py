"""The commands of mval, one file each. To add a command, add a file."""
