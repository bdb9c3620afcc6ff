"""Generation: the cache, picking the next token, and when to stop."""
