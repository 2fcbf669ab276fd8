"""python -m modalbridge: the command, where it is not on the path."""

from modalbridge.cli.app import main

if __name__ == "__main__":
    main()
