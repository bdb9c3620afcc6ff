"""Checkpoints: references, file formats, weight rows, and loading by them."""
