"""Chat templates and the sandbox that they run in."""
