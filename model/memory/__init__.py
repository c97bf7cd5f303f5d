"""How much memory a checkpoint needs, and where its weights are kept while it renders."""
