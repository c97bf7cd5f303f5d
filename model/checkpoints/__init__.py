"""Official weight files → a checkpoint folder: fetch, read, check, merge, prune, write (docs/weights.md)."""
