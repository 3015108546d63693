"""Instructions of the command ``mxpolicy``, as callgrind(1) counts them."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.piping import MESSAGE

__all__ = ["ENVIRONMENT", "Instructions", "instructions"]

# The same instructions in every run.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}


class Instructions(NamedTuple):
    """Of the shell that runs the script, and of the Perl and the Python that it starts."""

    script: int
    perl: int
    python: int


def instructions(argv: Sequence[str], search: str = "") -> Instructions:
    """Run a command with a small message on stdin, and count; valgrind is on the PATH.

    The command has *search* as its PATH, if that is given.
    """
    environ = {**ENVIRONMENT, "PATH": search or ENVIRONMENT["PATH"]}
    valgrind = shutil.which("valgrind") or "valgrind"
    with tempfile.TemporaryDirectory() as directory:
        counting = ["--tool=callgrind", "--trace-children=yes"]
        counting.append(f"--callgrind-out-file={directory}/%p")
        subprocess.run(
            [valgrind, *counting, *argv],
            input=MESSAGE,
            capture_output=True,
            env=environ,
            check=True,
        )
        found = {"python": 0, "perl": 0, "script": 0}
        for file in Path(directory).iterdir():
            text = file.read_text(errors="replace")
            command = re.search(r"^cmd: +(\S+)", text, re.M)
            total = re.search(r"^totals: (\d+)", text, re.M)
            assert command is not None
            assert total is not None, text[-200:]
            name = Path(command[1]).name
            kind = next((one for one in found if name.startswith(one)), "script")
            found[kind] += int(total[1])
    return Instructions(**found)
