"""Tasks that read text and answer in one pass."""
