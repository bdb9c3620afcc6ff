"""The command line: one small file for each verb. Data goes to stdout, progress and errors to stderr."""

STDIN = "\0stdin"  # what "-" becomes before the parser sees it; no argument can hold a NUL, so nothing else is it
