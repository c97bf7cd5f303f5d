"""The routes, one file per kind."""
