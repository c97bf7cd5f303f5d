"""Co-generation training: two streams, a supervised mixture of experts, and the procedural world of the
small model.
"""
