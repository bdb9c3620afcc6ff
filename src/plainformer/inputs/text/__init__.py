"""Text and tokens: tokenizers, their files, encodings, windows."""
