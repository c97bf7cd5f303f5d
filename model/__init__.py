"""The CoInteract network and everything that turns a speech, two photos and prompts into a video."""
