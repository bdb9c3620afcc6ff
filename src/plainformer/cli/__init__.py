"""The command line: one small file for each verb. Data goes to stdout, progress and errors to stderr."""
