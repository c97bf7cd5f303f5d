"""What makes the repository itself: generated pages, shipped checkpoint, pictures."""
