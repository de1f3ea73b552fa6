"""`python -m repertory`: the command line."""

import sys

from repertory.cli import main

if __name__ == "__main__":
    sys.exit(main())
