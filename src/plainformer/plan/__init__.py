"""What a model needs of memory and time, by arithmetic alone. Torch-free."""
