"""``python -m mxpolicy`` is the console command."""

import sys

from mxpolicy.cli import main

if __name__ == "__main__":
    sys.exit(main())
