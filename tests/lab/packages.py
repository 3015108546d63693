"""Debian packages, fetched and unpacked under `.lab`, never installed.

apt-get is asked what is missing on this machine for the packages named here, and fetches
only that, into `.lab/debs`; dpkg-deb unpacks it into one tree, `.lab/roots/KEY/root`,
which `inside` lays over the machine's own `/usr` and `/etc` in a mount namespace. No
maintainer script runs: what Postfix's would do, `postfix.py` does.

A tree is complete when its `packages` file is there; then no network and no apt is
needed. It is keyed by distribution, version, architecture and the list of packages, so
that a new list never takes the ground from under a lab that runs.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LAB_DIRECTORY = CHECKOUT / ".lab"

# Each inner tuple is one question to apt: packages that conflict with each other
# (two mail servers) must be asked for separately, and lie in one tree in peace.
PACKAGES: tuple[tuple[str, ...], ...] = (
    ("postfix",),
    ("nsd", "unbound", "ldnsutils", "bind9-dnsutils"),
    ("nftables", "ethtool", "iproute2"),
    # Unpacked in order of their names: where Exim and Postfix have a file of one name,
    # sendmail(1) above all, it is Postfix's.
    ("exim4-daemon-light",),
)


class LabUnavailable(Exception):
    """The lab cannot run here; the text says what is missing, in one sentence."""


def root_tree(packages: tuple[tuple[str, ...], ...] = PACKAGES) -> Path:
    """Return the unpacked tree for this machine, fetching it where it is not there.

    Raises LabUnavailable when apt cannot fetch, with apt's own last words.
    """
    wanted = "".join(" ".join(group) + "\n" for group in packages)
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    home = LAB_DIRECTORY / "roots" / f"{_key()}-{digest}"
    tree, stamp = home / "root", home / "packages"
    with alone():
        if stamp.exists():
            return tree
        shutil.rmtree(tree, ignore_errors=True)
        _make_skeleton(tree)
        # Everything that lies among the archives of a list gets into its tree.
        of_its_own = "" if packages == PACKAGES else f"-{digest}"
        archives = LAB_DIRECTORY / "debs" / f"{_key()}{of_its_own}"
        for package_file in _fetch(archives, packages):
            _unpack(package_file, tree)
        stamp.write_text(wanted)
    return tree


@contextmanager
def alone() -> Iterator[None]:
    """Keep a second run on this machine waiting while this one unpacks."""
    LAB_DIRECTORY.mkdir(exist_ok=True)
    with (LAB_DIRECTORY / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key() -> str:
    release = platform.freedesktop_os_release()
    return f"{release['ID']}-{release.get('VERSION_ID', 'sid')}-{platform.machine()}"


def _make_skeleton(tree: Path) -> None:
    # Debian 12's packages still hold /lib and /sbin; the machine has them as links into
    # /usr, and only /usr is laid over.
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "etc").mkdir()


def _fetch(archives: Path, packages: Sequence[Sequence[str]]) -> list[Path]:
    """Fetch all packages into *archives*; return the files there."""
    if shutil.which("apt-get") is None:
        raise LabUnavailable(f"no apt-get here to fetch {packages[0][0]} with")
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    own_lists: list[str] = []
    for group in packages:
        answer = _install(archives, group, own_lists)
        if answer.returncode != 0 and not own_lists:
            # The machine's package lists are absent or old. Ours go under .lab, too.
            own_lists = _update_own_lists(archives)
            answer = _install(archives, group, own_lists)
        if answer.returncode != 0:
            raise LabUnavailable(
                f"apt-get could not fetch {' '.join(group)}: {_last_line(answer)}"
            )
    return sorted(archives.glob("*.deb"))


def _install(
    archives: Path, group: Sequence[str], more: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    # --reinstall: also a package that this machine has comes into the tree, so that the
    # lab does not change when the machine does.
    return _apt(
        archives,
        *more,
        *("--no-install-recommends", "--reinstall", "--download-only", "install"),
        *group,
    )


def _update_own_lists(archives: Path) -> list[str]:
    lists = LAB_DIRECTORY / "apt" / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={lists}"]
    _apt(archives, *options, "update")
    return options


def _apt(archives: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = LAB_DIRECTORY / "apt" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::Cache": cache,
        "Dir::Cache::archives": archives,
        "Debug::NoLocking": "1",  # nothing of the machine's is written
        "APT::Sandbox::User": "root",  # _apt may not write below .lab
        "Acquire::Retries": "3",
    }
    options = [
        word for key, value in settings.items() for word in ("-o", f"{key}={value}")
    ]
    return subprocess.run(
        ["apt-get", "-qq", "-y", *options, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(answer: subprocess.CompletedProcess[str]) -> str:
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {answer.returncode}"


def _unpack(package_file: Path, tree: Path) -> None:
    # Not `dpkg-deb --extract`: its tar replaces the links of the skeleton.
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package_file)], stdout=subprocess.PIPE
    ) as packed:
        subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "--numeric-owner"],
            cwd=tree,
            stdin=packed.stdout,
            check=True,
        )
    if packed.returncode != 0:
        raise LabUnavailable(f"{package_file.name} cannot be unpacked")
