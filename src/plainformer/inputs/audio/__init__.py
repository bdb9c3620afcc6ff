"""Audio: reading files, and the models' input features."""
