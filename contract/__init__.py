"""The words that every package uses, each defined once. Imports nothing of ours, no torch, no disk."""
