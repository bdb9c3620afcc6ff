"""What memory a model needs, counted from its configuration alone. No torch."""
