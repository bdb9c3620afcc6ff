"""The same model on many processes."""
