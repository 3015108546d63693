"""What a file keeps when its text is replaced."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mxpolicy.setup.disk import Disk, fixed, labels_of
from mxpolicy.setup.mail_server import MailServer
from mxpolicy.setup.postfix import Postfix
from mxpolicy.setup.steps import Asked
from tests.setup.programs import Copy, sample

ACL = "system.posix_acl_access"

# acl(5) as the kernel has it: version 2, then tag, permissions and id of each entry.
_ENTRIES = ((1, 6, -1), (2, 4, 65534), (4, 0, -1), (16, 4, -1), (32, 0, -1))
LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *entry) for entry in _ENTRIES
)


def labelled(path: Path) -> Path:
    """Give *path* an access control list and an attribute, where the system has them."""
    try:
        os.setxattr(path, ACL, LIST)
        os.setxattr(path, "user.mine", b"kept")
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}")
    return path


def test_file_that_is_mounted_by_itself_is_fixed(tmp_path: Path) -> None:
    path = tmp_path / "main cf"
    path.touch()
    mounts = tmp_path / "mountinfo"
    shown = str(path).replace(" ", "\\040")
    mounts.write_text(
        "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"381 21 254:0 /srv/main.cf {shown} rw,relatime - ext4 /dev/vda rw\n"
    )
    assert f"{path} is mounted by itself" in fixed(str(path), str(mounts))
    assert fixed(str(tmp_path / "master.cf"), str(mounts)) == ""
    assert fixed(str(path), str(tmp_path / "nowhere")) == ""


def test_file_keeps_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "main.cf"
    path.write_text("old")
    labelled(path)
    before = labels_of(str(path))
    assert before is not None
    assert before.attributes[ACL] == LIST
    assert Disk().replace(str(path), "new") == []
    assert labels_of(str(path)) == before


def test_new_file_of_an_editor_gets_the_labels_of_the_old_one(tmp_path: Path) -> None:
    directory = sample("debian", tmp_path / "postfix")
    names = ("main.cf", "master.cf")
    before = {one: labels_of(str(labelled(directory / one))) for one in names}
    postfix: MailServer = Postfix(Copy(directory))
    asked = Asked(all_mail=True)
    postfix.apply(asked, postfix.plan(asked), print)
    assert {one: labels_of(str(directory / one)) for one in names} == before
    what = postfix.undoing()
    assert what is not None
    postfix.undo(what, print)
    assert {one: labels_of(str(directory / one)) for one in names} == before
    assert postfix.lost == []


def test_list_that_a_directory_hands_down_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "main.cf"
    path.write_text("old")
    before = labels_of(str(path))
    labelled(path)
    assert Disk().give_back(str(path), before) == []
    assert labels_of(str(path)) == before


class Closed(Disk):
    """A system that lets nobody set a list."""

    def act(self, call: Callable[..., Any], *arguments: object) -> Any:
        if call is os.setxattr and ACL in arguments:
            raise OSError(errno.EPERM, "")
        return super().act(call, *arguments)


def test_file_that_loses_its_list_is_open_to_fewer(tmp_path: Path) -> None:
    path = tmp_path / "main.cf"
    path.write_text("old")
    labelled(path)
    assert path.stat().st_mode & 0o777 == 0o640
    assert Closed().replace(str(path), "new") == [ACL]
    # The bits of the group were the list's mask; the group itself had no permission.
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "new"
