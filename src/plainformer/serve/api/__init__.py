"""The routes of the server: each file reads a body by its table of fields, asks the engine, and writes what clients expect."""
