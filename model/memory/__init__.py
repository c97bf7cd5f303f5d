"""What a checkpoint needs of a device, and where its weights lie while it works."""
