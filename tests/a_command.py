"""`fedpeft ARGUMENTS` in a folder, as a module, for who forks it."""

import os
import sys

from fedpeft.cli import main

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    del sys.argv[1]
    sys.exit(main())
