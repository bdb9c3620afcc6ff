"""The cases of the parity tests, a module for each kind of model; tests of generation take theirs from here too."""
