"""The chains of small operations between matrix products, one pass over memory each."""
