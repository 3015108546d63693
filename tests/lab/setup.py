"""`python -m tests.lab.setup`: fetch and unpack what the lab needs, start nothing."""

import os
import sys

from .packages import LabUnavailable, root_tree


def main() -> int:
    """Return 0 when the tree is there, 1 with one sentence when it cannot be."""
    if os.geteuid() != 0:
        print("the lab needs root: unpacked files keep their owners", file=sys.stderr)
        return 1
    try:
        print(root_tree())
    except LabUnavailable as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
