"""`train`: from a configuration to a run folder. It sees all parts of the library, as `loading` does."""
