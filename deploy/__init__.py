"""What puts the service on machines: the one-machine stack, its samples and its bundled checkpoint."""
