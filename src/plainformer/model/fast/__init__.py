"""What is installed on top of the plain model for inference: packed weights and compiled decoding steps."""
