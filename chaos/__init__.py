"""The load and fault harness behind `cointeract chaos`."""
