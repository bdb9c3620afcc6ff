"""Raw input (text, audio, image) to tensors."""
