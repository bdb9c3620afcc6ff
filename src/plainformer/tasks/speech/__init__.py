"""Tasks that read audio: recognition, classification, embedding."""
