"""The commands of mrelease: one file each."""
