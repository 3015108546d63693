"""The SMTP hosts and the name service of the lab judge others, so they are tried first."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from .hosts import Hosts
from .names import NameService
from .packages import LabUnavailable
from .smtp_host import Behaviour, Step, path_in
from .world import World

pytestmark = pytest.mark.lab

ENVELOPE = b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<%b@lab>\r\nDATA\r\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Namespaces for the tests of this module."""
    try:
        world = World()
    except LabUnavailable as why:
        pytest.skip(str(why))
    with world:
        yield world


@pytest.fixture(scope="module")
def hosts(world: World) -> Hosts:
    """Hosts in it."""
    return Hosts(world)


def say(world: World, address: str, words: bytes) -> bytes:
    """Send all *words* at once, then the end; return all that came back."""
    with world.connect("mta", (address, 25)) as connection:
        connection.sendall(words)
        with suppress(OSError):  # reset already: reading tells
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return answers.read()


def place(hosts: Hosts, address: str, **steps: Step) -> None:
    """Put a host with faults at *address*."""
    hosts.place([(address, "host.example", Behaviour(steps))])


def test_message_counts_once_its_dot_has_come(world: World, hosts: Hosts) -> None:
    place(hosts, "198.18.1.1")
    words = ENVELOPE % b"whole" + b"Subject: x\r\n\r\n..dotted\r\n.\r\nQUIT\r\n"
    answers = say(world, "198.18.1.1", words).split(b"\r\n")
    assert answers[-3].startswith(b"250 2.0.0 Ok: taken as")
    assert answers[-2] == b"221 2.0.0 Bye"
    [message] = hosts.received("whole@lab")
    assert message.data == "Subject: x\r\n\r\n.dotted\r\n"
    assert (message.reverse_path, message.accepted) == ("a@b", True)


@pytest.mark.parametrize("end", [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n."])
def test_nothing_but_crlf_dot_crlf_ends_a_message(
    world: World, hosts: Hosts, end: bytes
) -> None:
    place(hosts, "198.18.1.1")
    recipient = end.hex().encode()
    answer = say(world, "198.18.1.1", ENVELOPE % recipient + b"text" + end)
    assert answer.endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n")
    assert hosts.received(f"{end.hex()}@lab") == []


def test_bare_line_ends_are_counted(world: World, hosts: Hosts) -> None:
    place(hosts, "198.18.1.1")
    say(world, "198.18.1.1", ENVELOPE % b"bare" + b"one\ntwo\rthree\r\n.\r\n")
    [message] = hosts.received("bare@lab")
    assert (message.bare_lf, message.bare_cr) == (1, 1)


def test_message_refused_at_its_dot_is_received_but_not_accepted(
    world: World, hosts: Hosts
) -> None:
    place(hosts, "198.18.1.2", DOT=Step("452 4.3.1 Full"))
    say(world, "198.18.1.2", ENVELOPE % b"full" + b"text\r\n.\r\n")
    [message] = hosts.received("full@lab")
    assert not message.accepted


def test_reset_at_a_step_is_seen_as_one(world: World, hosts: Hosts) -> None:
    place(hosts, "198.18.1.3", MAIL=Step(end="reset"))
    with pytest.raises(ConnectionResetError):
        say(world, "198.18.1.3", ENVELOPE % b"reset")
    assert hosts.sessions()[-1].ended == "reset by host"


def test_hushed_host_reads_on_and_says_nothing(world: World, hosts: Hosts) -> None:
    place(hosts, "198.18.1.4", CONNECT=Step(end="hush"))
    assert say(world, "198.18.1.4", ENVELOPE % b"hush") == b""
    assert hosts.sessions()[-1].ended == "closed by client"


def test_host_has_an_ipv6_address_too(world: World, hosts: Hosts) -> None:
    place(hosts, "2001:db8:18:1::1")
    say(world, "2001:db8:18:1::1", ENVELOPE % b"six" + b"text\r\n.\r\n")
    [message] = hosts.received("six@lab")
    assert message.address == "2001:db8:18:1::1"


def test_address_without_a_listener_refuses(world: World, hosts: Hosts) -> None:
    hosts.place([("198.18.1.5", "host.example", Behaviour(listens=False))])
    with pytest.raises(ConnectionRefusedError):
        world.connect("mta", ("198.18.1.5", 25))


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("FROM:<>", ""),
        ("FROM:<a@b> SIZE=3", "a@b"),
        ('TO:<"a>b"@c> NOTIFY=NEVER', '"a>b"@c'),
        (r'TO:<"a\">b"@c>', r'"a\">b"@c'),
    ],
)
def test_path_stands_between_angle_brackets(argument: str, path: str) -> None:
    assert path_in(argument) == path


def test_names_are_authenticated_and_nothing_else_exists(world: World) -> None:
    NameService(world, ["known A 198.18.1.1"])
    for name, words in (
        ("known.lab.test", ("NOERROR", " ad;")),
        ("unknown.lab.test", ("NXDOMAIN", " ad;")),
        ("example.com", ("NXDOMAIN", " ad;")),
    ):
        ask = ["dig", "+dnssec", name, "A"]
        answer = world.run("mta", ask).stdout.decode()
        for word in words:
            assert word in answer
