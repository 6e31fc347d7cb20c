"""`fedpeft ARGUMENTS` as a module, for who forks it."""

import sys

from fedpeft.cli import main

if __name__ == "__main__":
    sys.exit(main())
