"""What generated text must be, and where it must end: grammars, token healing, stop strings."""
