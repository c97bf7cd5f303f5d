"""Compares this code with the official one: `python -m model.parity --weights FILE --cases FILE`."""
