"""Measuring the networks on the machine at hand: `cointeract bench` and `cointeract profile`."""
