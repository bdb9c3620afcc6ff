"""`python -m plainformer`: the program, where its script is not on the PATH."""

from plainformer.cli.main import main

if __name__ == "__main__":
    main()
