"""Entry point of `python -m steercube`, needed for `accelerate launch -m steercube collect ...`."""

import sys

from steercube.cli import main

if __name__ == "__main__":
    sys.exit(main())
