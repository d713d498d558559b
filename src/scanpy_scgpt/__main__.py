"""`python -m scanpy_scgpt`: the command line."""

import sys

from scanpy_scgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
