"""Data sets: rows from files, their columns, splits and duplicates, and a cache of what is made of them. No torch."""
