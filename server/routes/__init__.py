"""The routes, one file for each kind. No file imports another."""
