"""The `cointeract` command, the one-machine stack and what is needed to run the service."""
