"""`python FILE ARGUMENTS`, as a module, for who forks it."""

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
