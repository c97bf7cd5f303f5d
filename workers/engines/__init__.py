"""What renders: the CoInteract pipeline, and a stand-in without a model for fault tests."""
