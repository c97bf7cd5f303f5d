"""The `cointeract` command."""
