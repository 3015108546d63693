"""Lines where they belong, through real sockets, files and pipes; and no waiting."""

import fcntl
import json
import os
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mxpolicy.delivery.events import (
    AccessJudged,
    CandidateStarted,
    Delays,
    Event,
    LateReplyEnded,
    RecipientSettled,
    StrayReply,
    Trouble,
)
from mxpolicy.delivery.log import Log
from mxpolicy.options import LogDetail, LogFormat, LogOptions
from mxpolicy.outcome import Delivered
from mxpolicy.reply import EnhancedStatus, Reply
from mxpolicy.routing.candidate import Candidate

OK = Reply(250, ("2.0.0 Ok",))
SENT = RecipientSettled(
    0.5,
    "kim@example.com",
    Delivered(EnhancedStatus(2, 0, 0), OK.text, OK, "mx.example.com[192.0.2.1]:25"),
    Delays(),
    (),
    "4bXyz1",
)
STARTED = CandidateStarted(0.1, Candidate("mx.example.com", "192.0.2.1", 25), "4bXyz1")
LINE = (
    "4bXyz1: to=<kim@example.com>, relay=mx.example.com[192.0.2.1]:25, egress=direct,"
    " delay=0.5, delays=0/0/0/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)"
)
TAG = f"mxpolicy[{os.getpid()}]"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@contextmanager
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(5)
        yield listening


def to_syslog(path: Path, **options: LogFormat | LogDetail) -> Log:
    return Log(LogOptions(**options), syslog_socket=str(path))  # type: ignore[arg-type]


# syslog


def test_syslog_gets_one_datagram_for_each_line(tmp_path: Path) -> None:
    with listener(tmp_path / "log") as syslogd, to_syslog(tmp_path / "log") as log:
        log.observe(SENT)
        log.observe(Trouble(0.6, "no memory", "4bXyz1"))
        # mail.info is 2 * 8 + 6, mail.warning 2 * 8 + 4
        assert syslogd.recv(5000).decode() == f"<22>{TAG}: {LINE}"
        trouble = f"<20>{TAG}: 4bXyz1: trouble, at=0.6 (no memory)"
        assert syslogd.recv(5000).decode() == trouble


def test_stray_and_late_replies_are_logged_unasked(tmp_path: Path) -> None:
    candidate = STARTED.candidate
    with listener(tmp_path / "log") as syslogd, to_syslog(tmp_path / "log") as log:
        log.observe(StrayReply(0.1, candidate, "250 ok", "4bXyz1"))
        assert b": stray reply, at=0.1" in syslogd.recv(5000)
        log.observe(LateReplyEnded(601.0, candidate, "kim@x", True, "250 ok", "4bXyz1"))
        assert b": late reply, at=601" in syslogd.recv(5000)


def test_steps_are_logged_only_where_asked(tmp_path: Path) -> None:
    with listener(tmp_path / "log") as syslogd:
        with to_syslog(tmp_path / "log") as log:
            log.observe(STARTED)
            log.observe(SENT)
        assert b"status=sent" in syslogd.recv(5000)
        with to_syslog(tmp_path / "log", detail=LogDetail.EVENTS) as log:
            log.observe(STARTED)
        assert b": started, at=0.1" in syslogd.recv(5000)


def test_judgement_is_logged_when_it_decided_something(tmp_path: Path) -> None:
    judged = AccessJudged(0.1, "", "RCPT", "", "", "", (), "DUNNO")
    with listener(tmp_path / "log") as syslogd:
        with to_syslog(tmp_path / "log") as log:
            log.observe(judged)
            log.observe(judged._replace(action="WARN"))
        assert syslogd.recv(5000).endswith(b" action=WARN")
        with to_syslog(tmp_path / "log", detail=LogDetail.EVENTS) as log:
            log.observe(judged)
        assert syslogd.recv(5000).endswith(b" action=DUNNO")


def test_syslog_takes_json(tmp_path: Path) -> None:
    with listener(tmp_path / "log") as syslogd:
        with to_syslog(tmp_path / "log", format=LogFormat.JSON) as log:
            log.observe(SENT)
        tag, _, line = syslogd.recv(5000).partition(b": ")
    assert tag.decode() == f"<22>{TAG}"
    assert json.loads(line)["to"] == "kim@example.com"


def test_syslog_that_is_not_there_is_no_trouble_for_mail(tmp_path: Path) -> None:
    with to_syslog(tmp_path / "log") as log:
        log.observe(SENT)
        assert (log.lost, log.trouble) == (1, "No such file or directory")


def test_syslog_that_comes_back_is_told_what_it_missed(tmp_path: Path) -> None:
    with to_syslog(tmp_path / "log") as log:
        log.observe(SENT)
        log.observe(SENT)
        with listener(tmp_path / "log") as syslogd:
            log.observe(SENT)
            first, second = syslogd.recv(5000).decode(), syslogd.recv(5000).decode()
        assert first.startswith(f"<20>{TAG}: 4bXyz1: trouble")
        assert "(log lines lost: 2; No such file or directory)" in first
        assert second.endswith(LINE)
        assert (log.lost, log.trouble) == (0, "")


def test_syslog_that_was_restarted_loses_nothing(tmp_path: Path) -> None:
    with to_syslog(tmp_path / "log") as log:
        for _ in range(2):
            with listener(tmp_path / "log") as syslogd:
                log.observe(SENT)
                assert syslogd.recv(5000).decode().endswith(LINE)
            (tmp_path / "log").unlink()
        assert log.lost == 0


def test_syslog_that_reads_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with listener(tmp_path / "log") as syslogd, to_syslog(tmp_path / "log") as log:
        sent = 0
        while not log.lost:
            log.observe(SENT)
            sent += 1
        assert log.trouble == "Resource temporarily unavailable"
        for _ in range(sent - 1):
            syslogd.recv(5000)
        log.observe(SENT)
        assert b"(log lines lost: 1; " in syslogd.recv(5000)


# The journal


def test_journal_gets_its_fields(tmp_path: Path) -> None:
    options = LogOptions(to="journald")
    with listener(tmp_path / "journal") as journal:
        with Log(options, journal_socket=str(tmp_path / "journal")) as log:
            log.observe(SENT)
        fields = journal.recv(5000).decode().splitlines()
    assert fields == [
        f"MESSAGE={LINE}",
        "PRIORITY=6",
        "SYSLOG_FACILITY=2",
        "SYSLOG_IDENTIFIER=mxpolicy",
        f"SYSLOG_PID={os.getpid()}",
    ]


# A file


def to_file(path: Path, form: LogFormat = LogFormat.POSTFIX) -> Log:
    return Log(LogOptions(to=str(path), format=form))


def test_file_grows_by_a_line_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.write_text("before\n")
    with to_file(path) as log:
        log.observe(SENT)
        log.observe(SENT)
    first, *lines = path.read_text().splitlines()
    assert first == "before"
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(f"{TIME} {re.escape(TAG)}: {re.escape(LINE)}", line)


def test_file_of_json_holds_nothing_else(tmp_path: Path) -> None:
    with to_file(tmp_path / "mail.log", LogFormat.JSON) as log:
        log.observe(SENT)
    (line,) = (tmp_path / "mail.log").read_text().splitlines()
    assert re.fullmatch(TIME, json.loads(line)["time"])


def test_file_is_not_for_everybody_s_eyes(tmp_path: Path) -> None:
    with to_file(tmp_path / "mail.log") as log:
        log.observe(SENT)
    assert (tmp_path / "mail.log").stat().st_mode & 0o137 == 0


def test_file_is_opened_with_the_first_line_and_again_after_close(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mail.log"
    log = to_file(path)
    log.observe(STARTED)
    assert not path.exists()
    for number in (1, 2):
        log.observe(SENT)
        log.close()
        log.close()
        assert len(path.read_text().splitlines()) == number


def test_lines_of_several_processes_are_not_mixed(tmp_path: Path) -> None:
    event = SENT._replace(tried=("t" * 4000,))
    logs = [to_file(tmp_path / "mail.log") for _ in range(4)]

    def write(log: Log) -> None:
        for _ in range(50):
            log.observe(event)
        log.close()

    threads = [threading.Thread(target=write, args=[log]) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "mail.log").read_text().splitlines()
    assert len(lines) == 200
    assert all(re.match(f"{TIME} mxpolicy", line) for line in lines)
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("none/mail.log", "No such file or directory"),
        (".", "Is a directory"),
    ],
)
def test_file_that_cannot_be_written_is_no_trouble_for_mail(
    path: str, trouble: str, tmp_path: Path
) -> None:
    with to_file(tmp_path / path) as log:
        log.observe(SENT)
        assert (log.lost, log.trouble) == (1, trouble)


def test_full_disk_is_no_trouble_for_mail() -> None:
    with to_file(Path("/dev/full")) as log:
        log.observe(SENT)
        assert (log.lost, log.trouble) == (1, "No space left on device")


def test_line_written_in_part_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.touch()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with to_file(path) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, unlimited[1]))
        try:
            log.observe(SENT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert log.trouble == "a line was written in part: no space left"
        log.observe(SENT)
    torn, lost, line = path.read_text().splitlines()
    assert len(torn) == 50
    assert "(log lines lost: 1; a line was written in part" in lost
    assert line.endswith(LINE)


def test_fifo_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with to_file(tmp_path / "fifo") as log:
        log.observe(SENT)
        assert (log.lost, log.trouble) == (1, "No such device or address")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        while log.lost < 2:  # one that stopped reading
            log.observe(SENT)
            log.observe(STARTED)
            if log.trouble == "Resource temporarily unavailable":
                break
        os.close(reader)
        assert log.trouble == "Resource temporarily unavailable"


# Standard error


@contextmanager
def as_stderr(descriptor: int) -> Iterator[None]:
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_stderr_gets_lines_with_the_program_s_name() -> None:
    reads, writes = os.pipe()
    with as_stderr(writes), Log(LogOptions(to="stderr")) as log:
        log.observe(SENT)
    assert os.read(reads, 5000).decode() == f"{TAG}: {LINE}\n"
    os.close(reads)
    os.close(writes)


def test_stderr_that_nobody_empties_is_not_waited_for() -> None:
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    log = Log(LogOptions(to="stderr"))
    with as_stderr(writes):
        while not log.lost:
            log.observe(SENT)
    assert log.trouble == "standard error is full or closed"
    assert fcntl.fcntl(writes, fcntl.F_GETFL) & os.O_NONBLOCK == 0
    os.close(reads)
    os.close(writes)


def test_stderr_whose_reader_is_gone_is_no_trouble_for_mail() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    log = Log(LogOptions(to="stderr"))
    with as_stderr(writes):
        log.observe(SENT)
    assert log.lost == 1
    os.close(writes)


# Our own faults


def test_fault_of_ours_in_a_line_is_no_trouble_for_mail(tmp_path: Path) -> None:
    wrong: Event = SENT._replace(delays=None)  # type: ignore[arg-type]
    with to_file(tmp_path / "mail.log") as log:
        log.observe(wrong)
        assert log.lost == 1
        assert log.trouble.startswith("TypeError: ")
        log.observe(SENT)
    lines = (tmp_path / "mail.log").read_text().splitlines()
    assert "log lines lost: 1; TypeError" in lines[0]
    assert lines[1].endswith(LINE)
