"""GPU workers: a supervisor per device, the child that holds the model, and the reaper."""
