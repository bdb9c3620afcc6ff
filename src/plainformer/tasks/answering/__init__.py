"""Question answering: extractive and abstractive."""
