"""Tasks that read images."""
