"""The registered methods, one a file: each chooses maps."""
