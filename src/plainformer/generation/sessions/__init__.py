"""Where a search gets its logits: a model with its cache, without one, or two passes contrasted."""
