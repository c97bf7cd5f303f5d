"""The layers of the transformer, one concept per file."""
