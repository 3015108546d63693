"""The programs of Postfix that set-up runs: the real ones, and a copy of what they do.

The real postconf(1) is that of the lab's packages, run where it lies. Without it the tests go by `Copy`, which edits main.cf and
master.cf as the real one does. Where it is there, both are compared.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

from mxpolicy.check.programs import Ended, run

CHECKOUT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent / "postfix"

# Whole ones have a list of their packages; a measurement's own tree has no Postfix.
_TREES = [
    listed.with_name("root")
    for listed in sorted((CHECKOUT / ".lab" / "roots").glob("*/packages"))
    if (listed.with_name("root") / "usr" / "sbin" / "postconf").exists()
]
TREE = _TREES[0] if _TREES else None

# Postfix's programs sleep until main.cf is two seconds old.
_REAL = """\
#!/bin/sh
touch -d @1 "$MAIL_CONFIG/main.cf"
LD_LIBRARY_PATH={tree}/usr/lib/x86_64-linux-gnu:{tree}/usr/lib/postfix \\
    exec {tree}/usr/sbin/postconf "$@"
"""

# Defaults that set-up asks for.
_DEFAULTS = {
    "default_transport": "smtp",
    "relay_transport": "relay",
    "address_verify_default_transport": "$default_transport",
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated,"
    " defer_unauth_destination",
}

WHITE = " \t\r\v\f\n"


def sample(name: str, directory: Path) -> Path:
    """Copy the sample *name* to *directory*; return that."""
    shutil.copytree(SAMPLES / name, directory)
    (directory / "dynamicmaps.cf").touch()
    return directory


def write(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


class Copy:
    """Does what the programs of Postfix do with the files in a directory.

    Attributes:
        queue: What is in the queue: (queue name, content filter) by queue id.
        ran: The command lines.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ran: list[tuple[str, ...]] = []
        self.queue: dict[str, tuple[str, str]] = {}

    def __call__(self, program: str, *argv: str, **how: float) -> Ended:
        del how
        self.ran.append((program, *argv))
        answer = getattr(self, f"_{program}")
        out = answer(*argv)
        return out if isinstance(out, Ended) else Ended(0, out, "")

    def _postfix(self, *argv: str) -> Ended:
        return Ended(1, "", "")

    def _postconf(self, option: str, *words: str) -> str:
        if option == "-h":
            assert words == ("config_directory",)
            return f"{self._directory}\n"
        if option == "-x":
            return "".join(f"{one} = {self._value(one)}\n" for one in words)
        file = "master.cf" if option == "-M" else "main.cf"
        for word in words:
            name, _, value = (one.strip() for one in word.partition("="))
            self._edit(file, name, value)
        return ""

    def _postmap(self, option: str, key: str, table: str = "") -> Ended:
        if option == "-s":
            kind, _, path = key.partition(":")
            if kind != "texthash":
                return Ended(1, "", "postmap: fatal: cannot be listed")
            lines = Path(path).read_text().splitlines()
            rows = (one.split(None, 1) for one in lines if one.strip())
            return Ended(0, "".join("\t".join(one) + "\n" for one in rows), "")
        assert option == "-q"
        kind, _, path = table.partition(":")
        if kind in {"hash", "mysql", "proxy"}:
            # Of the sample's own machine; it has no such key.
            return Ended(1, "", "")
        assert kind in {"texthash", "regexp"}
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(" ")
            if kind == "texthash" and name == key:
                return Ended(0, f"{value.strip()}\n", "")
            if kind == "regexp" and re.search(name.strip("/"), key):
                return Ended(0, f"{value.strip()}\n", "")
        return Ended(1, "", "")

    def _postqueue(self, option: str) -> str:
        assert option == "-j"
        lines = (
            {"queue_name": name, "queue_id": queue_id}
            for queue_id, (name, _) in self.queue.items()
        )
        return "".join(f"{json.dumps(one)}\n" for one in lines)

    def _postcat(self, option: str, *ids: str) -> Ended:
        assert option == "-qe"
        out = ""
        for queue_id in ids:
            if queue_id not in self.queue:
                why = f"postcat: fatal: open queue file {queue_id}: No such file or directory"
                return Ended(1, out, why)
            name, content_filter = self.queue[queue_id]
            out += f"*** ENVELOPE RECORDS {name}/2/{queue_id} ***\nsender: me@here\n"
            out += f"content_filter: {content_filter}\n" if content_filter else ""
            out += f"*** MESSAGE CONTENTS {name}/2/{queue_id} ***\n"
        return Ended(0, out, "")

    def _value(self, name: str) -> str:
        if name == "config_directory":
            return str(self._directory)
        found = _DEFAULTS.get(name, "")
        for key, value in self._settings():
            if key == name:
                found = value
        return re.sub(r"\$(\w+)", lambda hit: self._value(hit[1]), found)

    def _settings(self) -> list[tuple[str, str]]:
        text = (self._directory / "main.cf").read_text(errors="surrogateescape")
        lines = [one for one in text.split("\n") if one.strip()[:1] not in {"", "#"}]
        logical = re.sub(r"\n(?=[ \t])", "", "\n".join(lines))
        pairs = (one.partition("=") for one in logical.split("\n"))
        return [(name.strip(), " ".join(text.split())) for name, _, text in pairs]

    def _edit(self, file: str, key: str, value: str) -> None:
        path = self._directory / file
        text = self.edited(file, _read(path), key, value)
        made = path.with_suffix(".tmp")
        made.write_bytes(text.encode("utf-8", "surrogateescape"))
        made.chmod(0o644)
        os.rename(made, path)

    @staticmethod
    def edited(file: str, text: str, key: str, value: str) -> str:
        """Return *text* as postconf_edit.c of Postfix 3.7 leaves it."""
        kept, is_ours, is_there = "", False, False
        line = _folded(value) if file == "master.cf" else f"{key} = {value}\n"
        for one in re.findall(r"[^\n]*\n|[^\n]+", text):
            if one.strip(WHITE)[:1] in {"", "#"}:
                kept += one
                continue
            if one[0] not in WHITE:
                words = one.split()
                name = "/".join(words[:2]) if file == "master.cf" else ""
                is_ours = (name or re.split(f"[{WHITE}=]", one)[0]) == key
                if is_ours:
                    kept += line
                    is_there = True
            if not is_ours:
                kept += one
        return kept + ("" if is_there else line)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


class Real(Copy):
    """The same, with the lab's own postconf(1).

    The others are the copy's: they want accounts and a mail system that are not there.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        assert TREE is not None
        programs = directory.parent / "programs"
        programs.mkdir(exist_ok=True)
        write(programs / "postconf", _REAL.format(tree=TREE))
        self._real = partial(
            run, str(programs), environ={"MAIL_CONFIG": str(directory)}
        )

    def __call__(self, program: str, *argv: str, **how: float) -> Ended:
        if program == "postconf":
            return self._real(program, *argv)
        return super().__call__(program, *argv, **how)


# Where each column of master.cf ends.
_STOPS = (11, 17, 25, 33, 41, 49, 57)


def _folded(entry: str) -> str:
    """Return a service as ``postconf -M`` writes it: columns, then lines of 80."""
    words = entry.split()
    line = ""
    for word, stop in zip(words, _STOPS, strict=False):
        line += word
        line += " " * max(1, stop - len(line))
    line += words[7]
    lines = []
    rest = words[8:]
    while rest:
        word = rest.pop(0)
        if word == "-o":
            lines.append(line)
            line = f"    -o {rest.pop(0)}"
        elif len(line) + 1 + len(word) >= 80:
            lines.append(line)
            line = f"    {word}"
        else:
            line += f" {word}"
    return "".join(f"{one}\n" for one in (*lines, line))
