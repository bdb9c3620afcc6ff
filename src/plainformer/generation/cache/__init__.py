"""The key-value cache and the buffers it writes to."""
