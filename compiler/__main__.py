"""`python -m tcc` is the command `tcc`."""

import sys

from tcc.cli import main

if __name__ == "__main__":
    sys.exit(main())
