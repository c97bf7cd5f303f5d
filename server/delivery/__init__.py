"""What the server sends out: files, signed links, event streams and webhooks."""
