"""One config-driven transformer. Read in this order: frontend, position, attention, block, transformer, heads; linear is their door to matrix products."""
