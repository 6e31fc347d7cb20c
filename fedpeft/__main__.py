"""``python -m fedpeft``: the command line, where the program itself is not on the path."""

import sys

from fedpeft.cli import main

if __name__ == "__main__":
    sys.exit(main())
