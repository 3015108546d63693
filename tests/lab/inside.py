"""Process 1 of the lab: makes the namespaces, then holds them until stdin ends.

Started by `world.World` as root through unshare(1), already in mount, PID, IPC and UTS
namespaces of its own. When this process ends, for whatever reason, the kernel kills
every process in the lab and forgets its networks and mounts; and it ends when the other
end of its stdin does. So nothing can be left behind, not even by SIGKILL.

It also reaps orphans and, in the place of a syslog daemon, writes what arrives on
/dev/log to /var/log/syslog. Standard library only, one file: it runs while the ground
below it is being moved.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Directories of the machine that the lab does not see: it gets an empty one instead.
HIDDEN = ("/opt", "/var", "/dev")

STAGE = Path("/run/lab")  # overlays, stashed directories, configuration of the servers

USERS = ("postfix", "postdrop", "mxpolicy", "unbound", "nsd", "Debian-exim")
FIRST_UID = 64100  # above Debian's dynamic ids, below its reserved ones

HOSTNAME = "mail.lab.test"

LINKS = """
link add eth0 netns mta type veth peer name in0 netns fw
link add eth0 netns net type veth peer name out0 netns fw
-n mta link set lo up
-n fw link set lo up
-n net link set lo up
-n mta link set eth0 up
-n fw link set in0 up
-n fw link set out0 up
-n net link set eth0 up
-n mta addr add 192.0.2.25/24 dev eth0
-n fw addr add 192.0.2.1/24 dev in0
-n fw addr add 203.0.113.1/24 dev out0
-n net addr add 203.0.113.2/24 dev eth0
-n mta addr add 2001:db8:2::25/64 dev eth0 nodad
-n fw addr add 2001:db8:2::1/64 dev in0 nodad
-n fw addr add 2001:db8:3::1/64 dev out0 nodad
-n net addr add 2001:db8:3::2/64 dev eth0 nodad
-n mta route add default via 192.0.2.1
-n mta route add default via 2001:db8:2::1
-n net route add default via 203.0.113.1
-n net route add default via 2001:db8:3::1
-n fw route add 198.18.0.0/15 via 203.0.113.2
-n fw route add 2001:db8:18::/48 via 2001:db8:3::2
-n net route add local 198.18.0.0/15 dev lo
-n net route add local 2001:db8:18::/48 dev lo
-n net addr add 203.0.113.53/32 dev eth0
"""

# Without duplicate address detection: addresses are used at once.
IPV6 = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",
}

# Answers of the firewall must not be thinned out: all cases run at once.
SYSCTLS = {
    "fw": {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/icmp_ratemask": "0",
        "net/ipv4/icmp_msgs_per_sec": "100000",
        "net/ipv4/icmp_msgs_burst": "100000",
        "net/ipv6/icmp/ratelimit": "0",
    },
    # Unlike IPv4's, an IPv6 address that is local by its route alone cannot be bound.
    "net": {"net/ipv6/ip_nonlocal_bind": "1"},
}


@dataclass(frozen=True)
class Plan:
    """What the outside tells process 1, as JSON in its first argument.

    `tree` is the unpacked packages; `needed` are directories that must be there at the
    same path and readable by every user (the checkout, Python); `mounts` maps further
    directories to the place where the lab shall see them as well; `links` are symbolic
    links to be made there, by their names, in memory.
    """

    tree: str
    needed: list[str]
    mounts: dict[str, str]
    links: dict[str, str]


def main() -> None:
    """Build, say so on stdout with our process id outside, hold."""
    plan = Plan(**json.loads(sys.argv[1]))
    outer_pid = os.readlink("/proc/self")  # the old /proc is still mounted
    socket.sethostname(HOSTNAME)
    build_mounts(plan)
    write_users()
    write_resolver_files()
    build_networks()
    print(json.dumps({"pid": int(outer_pid)}), flush=True)
    hold()


def run(*command: str, stdin: str | None = None) -> None:
    """Run a command; where it fails, end the lab with its words on stderr."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


# --- files -----------------------------------------------------------------------


def build_mounts(plan: Plan) -> None:
    """Lay the tree over /usr and /etc, hide what is not ours, show what is needed."""
    run("mount", "-t", "tmpfs", "-o", "mode=755", "lab", "/run")
    STAGE.mkdir(mode=0o755)
    stash = {path: stash_directory(path) for path in [*plan.needed, *plan.mounts]}
    devices = stash_directory("/dev")
    tree = stash_directory(plan.tree)
    for name in ("usr", "etc"):
        overlay(tree / name, Path("/") / name)
    # The machine's own Postfix configuration, where there is one, stays out of sight.
    Path("/etc/postfix").mkdir(exist_ok=True)
    empty(Path("/etc/postfix"))
    run("cp", "-a", f"{tree}/etc/postfix/.", "/etc/postfix")
    for hidden in HIDDEN:
        empty(Path(hidden))
    for path in plan.needed:
        show(path, stash[path])
    for path, place in plan.mounts.items():
        Path(place).mkdir(parents=True)
        overlay(stash[path], Path(place))
    for name, target in plan.links.items():
        Path(name).symlink_to(target)
    fill_dev(devices)
    fill_var()
    run("mount", "-t", "proc", "proc", "/proc")


def stash_directory(path: str) -> Path:
    """Bind *path* below the stage, so that it survives what is mounted over it."""
    place = STAGE / "stash" / str(len(list((STAGE / "stash").glob("*"))))
    place.mkdir(parents=True)
    run("mount", "--rbind", path, str(place))
    return place


def overlay(upper_tree: Path, place: Path) -> None:
    """Mount *upper_tree* over *place*; what is written goes to memory."""
    work = STAGE / "overlay" / place.name
    (work / "upper").mkdir(parents=True)
    (work / "work").mkdir()
    lower = f"lowerdir={upper_tree}:{place}"
    options = f"{lower},upperdir={work / 'upper'},workdir={work / 'work'}"
    run("mount", "-t", "overlay", "-o", options, "overlay", str(place))


def empty(place: Path) -> None:
    """Hide *place* behind an empty directory."""
    run("mount", "-t", "tmpfs", "-o", "mode=755", "lab", str(place))


def show(path: str, stashed: Path) -> None:
    """Make *path* reachable for every user, hiding directories that bar the way.

    A home directory is often 0700; the Python that the checkout's virtualenv points to
    may well lie in one.
    """
    for ancestor in reversed(Path(path).parents):
        if ancestor.exists() and not ancestor.stat().st_mode & 0o001:
            empty(ancestor)
    target = Path(path)
    if target.exists():
        return
    target.mkdir(parents=True)
    run("mount", "--rbind", str(stashed), path)


def fill_dev(devices: Path) -> None:
    """Give the new /dev what programs expect; its /dev/log will be ours."""
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (Path("/dev") / name).touch()
        run("mount", "--bind", f"{devices}/{name}", f"/dev/{name}")
    for name in ("pts", "shm"):
        (Path("/dev") / name).mkdir()
    run("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666", "pts", "/dev/pts")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "shm", "/dev/shm")
    Path("/dev/ptmx").symlink_to("pts/ptmx")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (Path("/dev") / name).symlink_to(f"/proc/self/fd/{number}")
    Path("/dev/fd").symlink_to("/proc/self/fd")


def fill_var() -> None:
    """Give the new /var the directories that base-files has."""
    for name in ("cache", "lib", "log", "mail", "spool"):
        (Path("/var") / name).mkdir()
    Path("/var/tmp").mkdir()
    Path("/var/tmp").chmod(0o1777)
    Path("/var/run").symlink_to("/run")


def write_users() -> None:
    """Add the servers' users to the lab's own passwd and group."""
    passwd, group = Path("/etc/passwd"), Path("/etc/group")
    users = {line.split(":")[0] for line in passwd.read_text().splitlines()}
    groups = {line.split(":")[0] for line in group.read_text().splitlines()}
    for number, name in enumerate(USERS, FIRST_UID):
        if name not in groups:
            with group.open("a") as file:
                file.write(f"{name}:x:{number}:\n")
        if name not in users:
            gid = next(
                line.split(":")[2]
                for line in group.read_text().splitlines()
                if line.startswith(f"{name}:")
            )
            with passwd.open("a") as file:
                file.write(f"{name}:x:{number}:{gid}::/nonexistent:/bin/false\n")


def write_resolver_files() -> None:
    """Names come from files, then from unbound beside Postfix, and from nowhere else."""
    files = {
        "resolv.conf": "nameserver 127.0.0.1\noptions edns0 trust-ad\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\n"
        "hosts: files dns\nservices: files\nprotocols: files\n",
        "hosts": f"127.0.0.1 localhost\n::1 localhost\n192.0.2.25 {HOSTNAME} mail\n",
        "hostname": f"{HOSTNAME}\n",
        "mailname": f"{HOSTNAME}\n",
        "aliases": "postmaster: root\n",
    }
    for name, text in files.items():
        path = Path("/etc") / name
        path.unlink(missing_ok=True)  # resolv.conf is often a link
        path.write_text(text)
        path.chmod(0o644)


# --- networks --------------------------------------------------------------------


def build_networks() -> None:
    """Make the three network namespaces and the links between them."""
    for name in ("mta", "fw", "net"):
        run("ip", "netns", "add", name)
        set_sysctls(name, IPV6)
    for line in LINKS.strip().splitlines():
        run("ip", *line.split())
    for name, settings in SYSCTLS.items():
        set_sysctls(name, settings)
    for name, link in (("mta", "eth0"), ("fw", "in0"), ("fw", "out0"), ("net", "eth0")):
        # What the kernel would cut or join itself must be seen on the wire as sent.
        off = ("tso", "off", "gso", "off", "gro", "off")
        run("ip", "netns", "exec", name, "ethtool", "-K", link, *off)


def set_sysctls(namespace: str, settings: dict[str, str]) -> None:
    """Write each setting from within *namespace*; /proc/sys/net is the writer's."""
    script = "".join(
        f"! test -e /proc/sys/{key} || echo {value} > /proc/sys/{key} || exit 1\n"
        for key, value in settings.items()
    )
    run("ip", "netns", "exec", namespace, "sh", "-c", script)


# --- holding ---------------------------------------------------------------------


def hold() -> None:
    """Log and reap until stdin ends."""
    signal.signal(signal.SIGCHLD, reap)
    log_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log_socket.bind("/dev/log")
    Path("/dev/log").chmod(0o666)
    log = Path("/var/log/syslog").open("a", buffering=1)  # noqa: SIM115 - for ever
    watcher = selectors.DefaultSelector()
    watcher.register(log_socket, selectors.EVENT_READ)
    watcher.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in watcher.select():
            if key.fileobj is not log_socket:
                if not os.read(0, 4096):
                    return
            else:
                text = log_socket.recv(65536).decode(errors="replace")
                log.write(f"{time.strftime('%b %d %H:%M:%S')} {text.rstrip()}\n")


def reap(signum: int, frame: object) -> None:
    """Take the status of every child that ended; process 1 inherits them all."""
    del signum, frame
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
