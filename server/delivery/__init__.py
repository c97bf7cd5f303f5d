"""What leaves the server: files, signed links, event streams and webhooks."""
