"""One config-driven transformer.

Read in this order: frontend, position, attention, block, stack, transformer, heads; linear is their door to matrix products.
"""
