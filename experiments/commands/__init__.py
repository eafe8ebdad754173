"""The commands of `roi`, a file each."""
