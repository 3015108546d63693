"""YAML to options: the zoo of wrong files, the right ones, and the search order."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy import config
from mxpolicy.errors import ConfigError
from mxpolicy.options import (
    AccessAbout,
    AccessFinding,
    AccessPolicyOptions,
    AccessRule,
    GreetingPolicy,
    LimitOptions,
    ListenOptions,
    LmtpSockets,
    LogDetail,
    LogFormat,
    LogOptions,
    LongLines,
    NxdomainPolicy,
    Options,
    PipeSockets,
    RaceOptions,
    ResolverOptions,
    TlsLevel,
    TlsOptions,
    TransactionOptions,
)

HERE = Path(__file__).parent / "config"
BAD = sorted(HERE.glob("bad/*.yaml"))

NEVER_DIALLED = (AccessFinding.NEVER_DIALLED,)

GOOD = {
    "policy_rules": Options(
        policy=AccessPolicyOptions(
            timeout=4.0,
            rules=(
                AccessRule(
                    (AccessFinding.NO_SUCH_DOMAIN, AccessFinding.NO_ADDRESS),
                    "550 5.7.1 no   such   domain",
                    about=AccessAbout.SENDER,
                    protocol_state=("RCPT", "END-OF-MESSAGE"),
                    client=("192.0.2.0/24", "2001:db8::1"),
                    sasl_username=("kim", "*"),
                    domain=("example.com", ".example.net"),
                ),
                AccessRule((AccessFinding.NULL_MX,), "DUNNO"),
                AccessRule((AccessFinding.LOOPS_TO_MYSELF,), "450"),
                AccessRule(NEVER_DIALLED, "PREPEND X-Mail: never dialled"),
                AccessRule(NEVER_DIALLED, "FILTER mxpolicy:"),
            ),
        )
    ),
    "sockets": Options(
        listen=ListenOptions(
            pipe=PipeSockets(at=()),
            lmtp=LmtpSockets(
                at=(
                    "unix",
                    "127.0.0.1:2424",
                    "[::1]:2424",
                    "/var/spool/postfix/mxpolicy/lmtp",
                ),
                group="postfix",
                allow=("127.0.0.0/8", "10.0.0.0/8"),
            ),
        ),
        limits=LimitOptions(clients=100),
    ),
    "all_defaults_by_comments": Options(),
    "empty": Options(),
    "only_a_document_mark": Options(),
    "empty_sections": Options(),
    "empty_words_are_defaults": Options(),
    "byte_order_mark_and_crlf": Options(port=26, helo="[IPv6:2001:db8::1]"),
    "json": Options(
        port=26,
        resolver=ResolverOptions(trust_ad=False),
        helo="[192.0.2.1]",
        limits=LimitOptions(message_memory=0),
    ),
    "many": Options(
        helo="mail.example.com",
        own_names=("mx.example.com", "mail"),
        own_addresses=("192.0.2.1", "2001:db8::/32"),
        never_dial=("private", "198.51.100.0/24"),
        allow_dial=(),
        port=2525,
        resolver=ResolverOptions(
            servers=(
                "192.0.2.53",
                "192.0.2.53:5353",
                "2001:db8::53",
                "[2001:db8::53]:5353",
            ),
            timeout=0.5,
            trust_ad=True,
        ),
        race=RaceOptions(address_delay=0.0, host_delay=1.5, open=32),
        deadline=3600.0,
        transaction=TransactionOptions(silence=0.25),
        greeting_5xx=GreetingPolicy.BOUNCE,
        nxdomain=NxdomainPolicy.DEFER,
        long_lines=LongLines.PASS,
        limits=LimitOptions(message_memory=10 * 1024 * 1024, processes=0),
        tls=TlsOptions(default=TlsLevel.NONE),
        log=LogOptions(
            to="/var/log/mxpolicy.log",
            format=LogFormat.JSON,
            detail=LogDetail.EVENTS,
        ),
        state="/srv/mxpolicy",
    ),
}


def mistakes_in(data: bytes, file: str = "f.yaml") -> str:
    with pytest.raises(ConfigError) as refused:
        config.parse(data, file)
    return "\n".join(refused.value.mistakes)


def outcome(data: bytes) -> tuple[Options | None, tuple[str, ...]]:
    try:
        return config.parse(data, "f.yaml"), ()
    except ConfigError as refused:
        return None, refused.mistakes


# What is in a file


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_wrong_file_is_answered_with_every_mistake(path: Path) -> None:
    expected = path.with_suffix(".expected").read_text()
    assert mistakes_in(path.read_bytes(), path.name) + "\n" == expected


def test_zoo_is_complete() -> None:
    assert len(BAD) >= 70
    assert {path.stem for path in HERE.glob("bad/*.expected")} == {
        path.stem for path in BAD
    }


# Of a syntax error, PyYAML's two parsers have different words; of ours, none.
@pytest.mark.parametrize(
    "path",
    [one for one in BAD if "not YAML" not in one.with_suffix(".expected").read_text()],
    ids=lambda path: path.stem,
)
def test_wrong_file_gives_the_same_mistakes_without_libyaml(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    expected = path.with_suffix(".expected").read_text()
    assert mistakes_in(path.read_bytes(), path.name) + "\n" == expected


@pytest.mark.parametrize("case", GOOD)
def test_right_file_gives_its_options(case: str) -> None:
    path = HERE / "good" / f"{case}.yaml"
    assert config.parse(path.read_bytes(), path.name) == GOOD[case]


def test_every_right_file_is_compared() -> None:
    assert {path.stem for path in HERE.glob("good/*")} == set(GOOD)


def test_no_mistake_is_longer_than_a_line_of_a_log() -> None:
    data = b"x" * 100_000 + b": 1\nhelo: " + b"y" * 100_000
    assert all(len(line) < 250 for line in mistakes_in(data).splitlines())


def test_file_over_the_limit_is_refused_unread() -> None:
    said = mistakes_in(b"#" * (config.MAX_FILE + 1))
    assert said == "f.yaml:1:1: the file is larger than 1 MiB"


def test_file_at_the_limit_is_read() -> None:
    assert config.parse(b"#" * config.MAX_FILE, "f.yaml") == Options()


@pytest.mark.parametrize("start", [b"[", b"{a: ", b"- ", b"? "])
def test_deep_nesting_ends_in_a_sentence(start: bytes) -> None:
    data = start * (config.MAX_FILE // len(start))
    # The scanner of newer libyaml looks a thousand brackets ahead, and stops there.
    ends = ("nested deeper than 16 levels", "exceeded maximum nesting depth")
    assert mistakes_in(data).endswith(ends)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_give_options_or_mistakes(data: bytes) -> None:
    options, mistakes = outcome(data)
    assert (options is None) == bool(mistakes)
    assert all(line.startswith("f.yaml:") for line in mistakes)
    assert all(line.isprintable() for line in mistakes)


WORDS = st.sampled_from(
    [
        "",
        "~",
        "30s",
        "-1",
        "0600",
        "no",
        "1:30",
        "6",
        "[]",
        "{}",
        "a.example",
        '"',
        "- a",
    ]
)
KEYS = st.sampled_from(
    ["port", "race", "open", "helo", "tls", "own_names", "<<", "?", ""]
)
LINES = st.tuples(st.sampled_from(["", " ", "  ", "\t"]), KEYS, WORDS).map(
    lambda parts: f"{parts[0]}{parts[1]}: {parts[2]}\n"
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=8).map("".join))
def test_likely_lines_in_any_order_give_options_or_mistakes(text: str) -> None:
    options, mistakes = outcome(text.encode())
    assert (options is None) == bool(mistakes)
    assert len(set(mistakes)) == len(mistakes)


# Where the file is


def test_no_file_at_the_usual_place_gives_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "mxpolicy.yaml"))
    assert config.load(None, {}) == Options()
    (tmp_path / "file").touch()
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "file/mxpolicy.yaml"))
    assert config.load(None, {}) == Options()


def test_file_at_the_usual_place_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mxpolicy.yaml").write_text("port: 26")
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "mxpolicy.yaml"))
    assert config.load(None, {}).port == 26
    assert config.load(None, {"MXPOLICY_CONFIG": ""}).port == 26


def test_command_line_beats_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("port: 26")
    (tmp_path / "b.yaml").write_text("port: 27")
    environ = {"MXPOLICY_CONFIG": str(tmp_path / "b.yaml")}
    assert config.load(str(tmp_path / "a.yaml"), environ).port == 26
    assert config.load(None, environ).port == 27


def test_named_file_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    for path, environ in ((missing, {}), (None, {"MXPOLICY_CONFIG": missing})):
        with pytest.raises(ConfigError) as refused:
            config.load(path, environ)
        assert refused.value.mistakes == (
            f"{missing}: cannot be read: No such file or directory",
        )


def test_directory_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(str(tmp_path), {})


def test_fifo_is_a_mistake_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot be read: it is not a file"):
        config.load(str(tmp_path / "fifo"), {})


def test_socket_is_a_mistake(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(ConfigError, match="cannot be read: No such device"):
            config.load(str(tmp_path / "socket"), {})


def test_dev_null_gives_the_defaults() -> None:
    assert config.load("/dev/null", {}) == Options()


def test_endless_file_is_read_to_the_limit_only() -> None:
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        config.load("/dev/zero", {})


def test_file_that_may_not_be_read_is_a_mistake_also_at_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mxpolicy.yaml"
    path.write_text("port: 26")
    path.chmod(0)
    tmp_path.chmod(stat.S_IRWXU | stat.S_IXOTH)
    monkeypatch.setattr(config, "DEFAULT_PATH", str(path))
    with unprivileged(), pytest.raises(ConfigError, match="Permission denied"):
        config.load(None, {})


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, where root would be let through."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_control_characters_in_the_file_s_name_are_not_repeated() -> None:
    assert mistakes_in(b"x: 1", "a\x1b[31m\n.yaml").startswith("a?[31m?.yaml:1:1: x: ")
