"""Co-generation training: two streams, supervised experts, and the procedural world of the small model."""
