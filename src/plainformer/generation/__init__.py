"""Generation: prompts and options in, tokens out. Read `search`, then `modes/token_loop`; everything else serves them."""
