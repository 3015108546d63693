"""Set-up of Debian's Exim and its undo."""

from __future__ import annotations

from pathlib import Path

import pytest

from mxpolicy.check.programs import Ended
from mxpolicy.setup.disk import SetupError
from mxpolicy.setup.exim import Exim
from mxpolicy.setup.kept import Stage
from mxpolicy.setup.mail_server import KEPT
from mxpolicy.setup.steps import Asked, Plan

DEBCONF = "dc_eximconfig_configtype='{}'\ndc_use_split_config='{}'\n"
OLD = "old:\n  driver = accept\n  domains = example.net\n  transport = {}\n"

ALL = Asked(all_mail=True)
SOME = Asked(domains=("example.com", ".example.com"))


class Programs:
    """Ends as it is told to; notes what was run."""

    def __init__(self) -> None:
        self.refuses = ""
        self.ran: list[tuple[str, ...]] = []

    def __call__(self, *argv: str, **how: object) -> Ended:
        self.ran.append(argv)
        if argv[0] == "update-exim4.conf" and self.refuses:
            return Ended(1, "", self.refuses)
        return Ended(0, "pid_file_path = /nonexistent/exim.pid\n", "")


def etc(tmp_path: Path, kind: str = "internet", split: str = "true") -> Path:
    directory = tmp_path / "exim4"
    for section in ("router", "transport", "retry"):
        (directory / "conf.d" / section).mkdir(parents=True)
    (directory / "update-exim4.conf.conf").write_text(DEBCONF.format(kind, split))
    rule = "*  *  F,2h,15m; G,16h,1h,1.5; F,4d,6h\n"
    (directory / "conf.d" / "retry" / "30_exim4-config").write_text(rule)
    router = directory / "conf.d" / "router" / "200_exim4-config_primary"
    router.write_text("dnslookup:\n  driver = dnslookup\n  transport = remote_smtp\n")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = (one for one in directory.rglob("*") if one.is_file())
    return {str(one.relative_to(directory)): one.read_bytes() for one in files}


def applied(exim: Exim, asked: Asked) -> Plan:
    what = exim.plan(asked)
    assert what.refusals == ()
    if what.steps or exim.stage is Stage.UNFINISHED:
        exim.apply(asked, what)
    return what


def undone(exim: Exim) -> None:
    what = exim.undoing()
    assert what is not None
    assert what.refusals == ()
    exim.undo(what)


@pytest.mark.parametrize(
    "asked",
    [Asked(), ALL, SOME, Asked(domains=("example.com",), lmtp=True)],
    ids=["transport", "all", "some", "lmtp"],
)
def test_undo_restores_every_byte(asked: Asked, tmp_path: Path) -> None:
    directory, run = etc(tmp_path), Programs()
    before = contents(directory)
    exim = Exim(str(directory), run)
    assert exim.is_split
    assert applied(exim, asked).notes == ()
    assert contents(directory) != before
    assert ("update-exim4.conf",) in run.ran
    assert exim.plan(asked).steps == ()
    assert (directory / KEPT).stat().st_mode & 0o777 == 0o600
    undone(exim)
    assert contents(directory) == before


def test_acl_is_for_hands(tmp_path: Path) -> None:
    exim = Exim(str(etc(tmp_path)), Programs())
    what = exim.plan(Asked(policy=True))
    [(where, lines), (_, then)] = what.by_hand
    assert what == Plan(by_hand=what.by_hand)
    assert "conf.d/acl/30_exim4-config_check_rcpt: in the ACL of acl_smtp_rcpt" in where
    assert "readsocket" in lines
    assert then == "update-exim4.conf && service exim4 reload"
    assert len(exim.plan(Asked(policy=True, all_mail=True)).steps) == 2


def test_domains_add_up(tmp_path: Path) -> None:
    directory = etc(tmp_path)
    before = contents(directory)
    exim = Exim(str(directory), Programs())
    applied(exim, SOME)
    applied(exim, Asked(domains=("example.org", "example.com")))
    router = (directory / "conf.d" / "router" / "190_mxpolicy").read_text()
    assert (
        "  domains = ! +local_domains : example.com : *.example.com : example.org\n"
        in router
    )
    applied(exim, ALL)
    [refusal] = exim.plan(SOME).refusals
    assert "takes all mail already" in refusal
    undone(exim)
    assert contents(directory) == before


def test_exim_that_refuses_leaves_all_as_it_was(tmp_path: Path) -> None:
    directory, run = etc(tmp_path), Programs()
    exim = Exim(str(directory), run)
    before = contents(directory)
    run.refuses = "Invalid new configfile"
    for asked in (SOME, ALL):
        with pytest.raises(SetupError, match="Invalid new configfile"):
            applied(exim, asked)
        assert contents(directory) == before
        run.refuses = ""
        applied(exim, SOME)
        before = contents(directory)
        run.refuses = "Invalid new configfile"


def test_router_that_the_postmaster_changed_is_kept(tmp_path: Path) -> None:
    directory = etc(tmp_path)
    exim = Exim(str(directory), Programs())
    applied(exim, ALL)
    router = directory / "conf.d" / "router" / "190_mxpolicy"
    router.write_text(router.read_text() + "# mine\n")
    [refusal] = exim.plan(ALL).refusals
    assert f"{router} is there already" in refusal
    undone(exim)
    assert not router.exists()
    assert router.with_suffix(".undone").read_text().endswith("# mine\n")


@pytest.mark.parametrize("name", ["mxpolicy", "mxpolicy_lmtp"])
def test_another_router_for_our_transport_is_in_the_way(
    name: str, tmp_path: Path
) -> None:
    directory = etc(tmp_path)
    exim = Exim(str(directory), Programs())
    applied(exim, ALL)
    (directory / "conf.d" / "router" / "100_old").write_text(OLD.format(name))
    what = exim.undoing()
    assert what is not None
    [refusal] = what.refusals
    assert f"100_old names {name}" in refusal
    # update-exim4.conf passes over it.
    (directory / "conf.d" / "router" / "100_old").rename(
        directory / "conf.d" / "router" / "100_old.dpkg-dist"
    )
    undone(exim)


def test_transport_of_our_name_is_refused(tmp_path: Path) -> None:
    directory = etc(tmp_path)
    other = directory / "conf.d" / "transport" / "30_mine"
    other.write_text("mxpolicy:\n  driver = pipe\n")
    [refusal] = Exim(str(directory), Programs()).plan(ALL).refusals
    assert f"{other} has mxpolicy already" in refusal


def test_what_the_postmaster_should_know(tmp_path: Path) -> None:
    directory = etc(tmp_path, "smarthost")
    (directory / "conf.d" / "retry" / "30_exim4-config").write_text("# none\n")
    rule, smarthost = Exim(str(directory), Programs()).plan(ALL).notes
    assert "* * F,2h,15m; G,16h,1h,1.5; F,4d,6h" in rule
    assert "is set up as smarthost" in smarthost


def test_what_only_exims_own_transport_is_told_is_noted(tmp_path: Path) -> None:
    directory = etc(tmp_path)
    printed = {
        "transports": "remote_smtp transport:\ndriver = smtp\ndkim_domain = a.example\n",
        "routers": "mx router:\ndriver = dnslookup\ntransport = remote_smtp\n",
    }

    def runs(*argv: str, **how: object) -> Ended:
        return Ended(0, printed.get(argv[-1], ""), "")

    exim = Exim(str(directory), runs)
    for asked in (ALL, SOME):
        [note] = exim.plan(asked).notes
        assert note.startswith(
            "transport remote_smtp has dkim_domain = a.example: mail"
        )
    assert exim.plan(Asked()).notes == ()


@pytest.mark.parametrize(
    ("split", "file"), [("false", ""), ("true", "exim4.conf"), ("", "")]
)
def test_single_file_is_known(split: str, file: str, tmp_path: Path) -> None:
    directory = etc(tmp_path, split=split)
    if file:
        (directory / file).touch()
    assert not Exim(str(directory), Programs()).is_split


def test_exim_goes_on_as_before_when_another_program_fails(tmp_path: Path) -> None:
    directory, run = etc(tmp_path), Programs()
    before = contents(directory)
    used: list[dict[str, bytes]] = []

    def runs(*argv: str, **how: object) -> Ended:
        if argv[0] == "update-exim4.conf":
            used.append(contents(directory / "conf.d"))
            return run(*argv)
        return Ended(1, "", "exim4: out of memory")

    exim = Exim(str(directory), runs)
    with pytest.raises(SetupError, match="out of memory"):
        exim.apply(ALL, exim.plan(ALL))
    assert contents(directory) == before
    assert used[-1] == contents(directory / "conf.d")
    assert len(used) == 2


def test_acl_that_was_put_in_is_named_by_undo(tmp_path: Path) -> None:
    directory = etc(tmp_path)
    exim = Exim(str(directory), Programs())
    assert exim.left() == []
    acl = directory / "conf.d" / "acl" / "30_exim4-config_check_rcpt"
    acl.parent.mkdir()
    [(_, lines), _] = exim.plan(Asked(policy=True)).by_hand
    acl.write_text(f"acl_check_rcpt:\n{lines}")
    [sentence] = exim.left()
    assert f"{acl}, line 17, is mxpolicy's and was put in by hand" in sentence


@pytest.mark.parametrize(
    ("split", "file", "named"),
    [
        ("false", "", "exim4.conf.template"),
        ("true", "exim4.conf", "exim4.conf"),
        ("", "", "/usr/local/etc/exim.conf"),
    ],
)
def test_single_file_is_named(
    split: str, file: str, named: str, tmp_path: Path
) -> None:
    directory = etc(tmp_path, split=split)
    if file:
        (directory / file).touch()
    if not split:
        (directory / "update-exim4.conf.conf").unlink()

    def run(*argv: str, **how: object) -> Ended:
        said = "Size of off_t: 8\nConfiguration file is /usr/local/etc/exim.conf\n"
        return Ended(0, said if argv[1] == "-bV" else "pid_file_path = \n", "")

    exim = Exim(str(directory), run)
    assert exim.single_file.endswith(named)
    *_, (then, commands) = exim.by_hand(ALL)
    assert then == "then"
    assert ("update-exim4.conf" in commands) is named.endswith(".template")
