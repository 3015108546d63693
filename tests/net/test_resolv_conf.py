"""resolv.conf as distributions, DHCP clients and people write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mxpolicy.net.resolv_conf import (
    LOOK_AGAIN,
    ResolvConf,
    ResolvConfFile,
    parse_resolv_conf,
    read_resolv_conf,
)


@pytest.mark.parametrize(
    ("text", "conf"),
    [
        pytest.param("", ResolvConf(("127.0.0.1",)), id="empty"),
        pytest.param(
            "nameserver 192.0.2.53\nnameserver\t2001:db8::53  # second\n",
            ResolvConf(("192.0.2.53", "2001:db8::53")),
            id="two",
        ),
        pytest.param(
            "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.com\n",
            ResolvConf(("127.0.0.53",), trust_ad=True),
            id="systemd_resolved",
        ),
        pytest.param(
            "options timeout:3 attempts:4\noptions rotate trust-ad",
            ResolvConf(trust_ad=True, timeout=3, attempts=4, rotate=True),
            id="numbers",
        ),
        pytest.param("options use-vc", ResolvConf(use_vc=True), id="use_vc"),
        pytest.param("options usevc ndots:2", ResolvConf(use_vc=True), id="usevc"),
        pytest.param(
            "options timeout:0 attempts:99999999999999",
            ResolvConf(timeout=1, attempts=5),
            id="bounded_as_in_glibc",
        ),
        pytest.param("options timeout:soon attempts:", ResolvConf(), id="no_numbers"),
        pytest.param(
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)),
            ResolvConf(("192.0.2.1", "192.0.2.2", "192.0.2.3")),
            id="three_at_most",
        ),
        pytest.param(
            "nameserver fe80::1%eth0", ResolvConf(("fe80::1%eth0",)), id="zone_index"
        ),
        pytest.param(
            "#nameserver 192.0.2.1\n; nameserver 192.0.2.2\n nameserver 192.0.2.3\n"
            "nameserver\nnameserver ns.example\nNAMESERVER 192.0.2.4\nno-trust-ad\n",
            ResolvConf(),
            id="nothing_that_counts",
        ),
        pytest.param(
            "nameserver 192.0.2.1\r\noptions trust-ad\r\n",
            ResolvConf(("192.0.2.1",), trust_ad=True),
            id="written_on_windows",
        ),
    ],
)
def test_file_is_understood(text: str, conf: ResolvConf) -> None:
    assert parse_resolv_conf(text) == conf


def test_missing_file_means_the_local_machine(tmp_path: Path) -> None:
    assert read_resolv_conf(str(tmp_path / "none")) == ResolvConf(("127.0.0.1",))


def test_directory_in_its_place_means_the_local_machine(tmp_path: Path) -> None:
    assert read_resolv_conf(str(tmp_path)) == ResolvConf()


def test_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(b"# \xe4\xff\nnameserver 192.0.2.53\n")
    assert read_resolv_conf(str(file)).servers == ("192.0.2.53",)


def test_endless_file_is_not_read_to_its_end() -> None:
    assert read_resolv_conf("/dev/zero") == ResolvConf()


@given(st.text(max_size=200))
@settings(max_examples=100)
def test_any_text_gives_at_least_one_server(text: str) -> None:
    assert 1 <= len(parse_resolv_conf(text).servers) <= 3


def test_file_that_has_changed_is_read_again_and_not_at_every_question(
    tmp_path: Path,
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    file = ResolvConfFile(str(path))
    assert file.read().servers == ("192.0.2.1",)
    assert file.news(0.0) is None
    path.write_text("nameserver 192.0.2.22\n")
    assert file.news(LOOK_AGAIN - 1) is None
    assert file.news(LOOK_AGAIN) == ResolvConf(("192.0.2.22",))
    assert file.news(2 * LOOK_AGAIN) is None


def test_file_that_is_replaced_counts_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.symlink_to(tmp_path / "one")
    (tmp_path / "one").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "two").write_text("nameserver 192.0.2.2\n")
    file = ResolvConfFile(str(path))
    path.unlink()
    assert file.news(LOOK_AGAIN) is None
    path.symlink_to(tmp_path / "two")
    assert file.news(2 * LOOK_AGAIN) == ResolvConf(("192.0.2.2",))


def test_file_that_comes_late_counts(tmp_path: Path) -> None:
    file = ResolvConfFile(str(tmp_path / "resolv.conf"))
    assert file.read() == ResolvConf()
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    assert file.news(LOOK_AGAIN) == ResolvConf(("192.0.2.1",))
