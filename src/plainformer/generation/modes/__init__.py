"""How tokens are chosen: one at a time, by beams, by contrast, or drafted and verified."""
