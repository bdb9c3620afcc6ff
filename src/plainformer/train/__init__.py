"""Training: what a step learns from (`plan`), what it minimises (`objectives`, `losses`), and the loop around it."""
