"""`mxpolicy.delivery.delivery`: what a message is told apart by, and where its time went.

What joins the rooms is in `tests.delivery.test_engine`.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trustme

from mxpolicy.delivery import events
from mxpolicy.delivery.mail_data import DIGESTED, MailData
from mxpolicy.errors import LocalTrouble
from mxpolicy.state.store import JOURNAL
from tests.delivery.attempts import mail_data, run
from tests.delivery.test_engine import Site, play, status
from tests.helpers.scripted_smtp import End, Script, ScriptedHost

if TYPE_CHECKING:
    from mxpolicy.outcome import Outcome

RECEIVED = b"Received: from a by b\r\n"


async def send(site: Site, data: bytes, queue_id: str) -> Outcome:
    with closing(mail_data(data)) as message:
        request = site.request(queue_id=queue_id)
        (outcome,) = await site.engine.deliver(request, message)
    return outcome


@pytest.mark.parametrize(
    ("fields", "expected"), [(49, "Delivered 2.0.0"), (50, "Bounced 5.4.6")]
)
def test_message_may_pass_so_many_mail_servers(fields: int, expected: str) -> None:
    data = RECEIVED * fields + b"\r\n"
    assert status(play(lambda site: send(site, data, "Q"))) == expected


@pytest.mark.parametrize(
    ("data", "queue_ids", "copies"),
    [
        pytest.param(b"\r\n", ("Q1", "Q1"), 1, id="same name"),
        pytest.param(b"\r\n", ("Q1", "Q2"), 2, id="other name"),
        pytest.param(RECEIVED + b"\r\n", ("", ""), 1, id="a mail server was here"),
        # Two messages may well have equal bytes: somebody sent the same twice.
        pytest.param(b"\r\n", ("", ""), 2, id="no mark at all"),
    ],
)
def test_equal_bytes_are_one_message_where_a_mail_server_has_named_or_marked_it(
    data: bytes, queue_ids: tuple[str, ...], copies: int
) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        for queue_id in queue_ids:
            assert status(await send(site, data, queue_id)) == "Delivered 2.0.0"

    play(work, {"one.example": [host]})
    assert len(host.taken) == copies


def test_second_call_of_one_process_waits_for_the_first() -> None:
    host = ScriptedHost({"RCPT": (2.0, "250 ok")})

    async def work(site: Site) -> None:
        task = asyncio.create_task(site.send())
        await asyncio.sleep(0.1)
        (second,) = await site.send()
        assert second.text.endswith("(delivered earlier)")
        (first,) = await task
        assert not first.text.endswith("(delivered earlier)")

    play(work, {"one.example": [host]})
    assert len(host.taken) == 1


def test_second_call_of_one_process_is_deferred_while_the_first_goes_on() -> None:
    host = ScriptedHost({"RCPT": End.SILENT})

    async def work(site: Site) -> None:
        task = asyncio.create_task(site.send())
        await asyncio.sleep(0.1)
        (outcome,) = await site.send()
        assert "another delivery of this message is under way" in outcome.text
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(work, {"one.example": [host]})
    assert len(host.visits) == 1


@pytest.mark.parametrize("is_ours", [True, False], ids=["same", "other"])
def test_claim_that_could_not_be_deleted_counts_only_for_other_processes(
    is_ours: bool,
) -> None:
    host = ScriptedHost({"RCPT": [(1.0, "450 later"), "250 ok"]})

    async def main() -> None:
        site = Site({"one.example": [host]}, alive=("us", "them"))
        task = asyncio.create_task(site.send())
        await asyncio.sleep(0.5)
        (claim,) = await site.store.scan(JOURNAL)
        assert status((await task)[0]) == "Deferred 4.0.0"
        await site.store.put(claim.key, claim.value, claim.expires)
        owner = "us" if is_ours else "them"
        again = Site(
            {"one.example": [host]}, owner=owner, alive=site.alive, store=site.store
        )
        (outcome,) = await (site if is_ours else again).send()
        assert status(outcome) == ("Delivered 2.0.0" if is_ours else "Deferred 4.3.0")
        again.now = site.now = site.now + 900 + 600 + 61  # no claim holds for longer
        (outcome,) = await again.send()
        assert status(outcome) == "Delivered 2.0.0"

    run(host, work=main)
    assert len(host.taken) == 1


def test_another_process_is_waited_for_no_longer_than_a_third_of_what_is_left() -> None:
    host = ScriptedHost({"RCPT": End.SILENT})

    async def main() -> None:
        theirs = Site({"one.example": [host]}, owner="them", alive=("us", "them"))
        site = Site({"one.example": [host]}, store=theirs.store, alive=("us", "them"))
        task = asyncio.create_task(theirs.send())
        await asyncio.sleep(0.1)
        (outcome,) = await site.send(deadline=6.0)
        assert "another delivery of this message is under way" in outcome.text
        assert 2.0 <= site.all(events.RecipientSettled)[0].at < 2.5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(host, work=main)


def test_seconds_are_counted_once_in_the_part_where_they_went() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx1.one.example").configure_cert(context)
    script: Script = {
        "CONNECT": (1.0, "220 mx ESMTP"),
        "STARTTLS": (2.0, "220 go"),
        "RCPT": (4.0, "250 ok"),
    }
    host = ScriptedHost(script, context=context)

    async def work(site: Site) -> events.RecipientSettled:
        site.resolver.slow["MX one.example"] = 0.5
        await site.send()
        (settled,) = site.all(events.RecipientSettled)
        return settled

    settled = play(work, {"one.example": [host]})
    assert settled.delays == pytest.approx((0.5, 1.0, 2.0, 4.0), abs=0.4)
    assert sum(settled.delays) == pytest.approx(settled.at, abs=0.1)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="before a host is asked"),
        pytest.param(3 * DIGESTED, id="while a host is asked"),
    ],
)
def test_mail_data_that_ends_early_is_no_bug_of_ours(size: int) -> None:
    host = ScriptedHost()

    async def work(site: Site) -> None:
        with closing(MailData()) as message:
            message.append(b"Subject: x\r\n\r\n" + b"x" * size)
            sending = asyncio.create_task(site.engine.deliver(site.request(), message))
            await asyncio.sleep(0.5)
            message.give_up(LocalTrouble("larger than 9 bytes"))
            (outcome,) = await sending
        assert status(outcome) == "Deferred 4.3.0"
        assert "local trouble: larger than 9 bytes" in outcome.text
        assert not site.all(events.Trouble), "a traceback in the log"

    play(work, {"one.example": [host]})
    assert not host.taken
