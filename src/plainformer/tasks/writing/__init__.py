"""Tasks that write text, and what their answers have in common."""
