"""`fedpeft ARGUMENTS` or `python FILE` in a machine's folder: what a forked process of a tutorial's test runs."""

import os
import runpy
import sys

from fedpeft.cli import main

if __name__ == "__main__":
    folder, program, *words = sys.argv[1:]
    os.chdir(folder)
    if program == "python":
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.exit(main(words))
