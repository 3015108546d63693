"""The mail servers' logs, which are asked for one message many times a second."""

from pathlib import Path


def lines_with(path: Path, mark: str = "") -> list[str]:
    """Return the lines of a log that contain *mark*, oldest first; none without a file.

    Only these are cut out: with a thousand messages in the log, most of the time went
    into the other lines.
    """
    data = path.read_bytes() if path.exists() else b""
    if not mark:
        return data.decode(errors="replace").splitlines()
    found, sought = [], mark.encode()
    at = data.find(sought)
    while at >= 0:
        begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
        end = len(data) if end < 0 else end
        found.append(data[begin:end].decode(errors="replace"))
        at = data.find(sought, end)
    return found
