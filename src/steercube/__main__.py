"""`python -m steercube`, as `accelerate launch -m steercube collect ...` needs it."""

import sys

from steercube.cli import main

if __name__ == "__main__":
    sys.exit(main())
