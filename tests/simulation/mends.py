"""Mends taken back: the decisions that the referee has to see when they are missing.

Each is a change of the product's text that brings an old fault back, by the title of the
commit that had mended it. `proof` applies them, to a copy.

Some mends are not among them, because no world shows them yet:

- "race: A host in doubt twice is not asked again only to overrule a refusal". The patient
  sender here does not heed a refusal while a better host cannot be looked up, and so makes
  as many copies.
- "late_reply: A session that only listens makes room for another one". Deferrals are not
  counted where a host leaves a dot unanswered, as a first doubt ends the try.
- "recall: Who has waited for another's probe dials". It shows only while a process that
  is dead, or slow, has the lease of hosts that are in doubt and well all the same.
- What keeps a session out of use whose host has said one reply too many: the look at the
  socket before it is used again, an end by any stray reply, refusals that count only in
  step, 354 and nothing else, no session kept after anything but a plain success. In 400
  worlds of sessions none shows even without all of them.
- "outcome_notes: A pipe process answers when all is written". The daemon would have to be
  killed in the half millisecond between.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MENDS", "Edit", "Mend"]


class Edit(NamedTuple):
    """A replacement in one file of mxpolicy; *old* is there exactly once."""

    file: str
    old: str
    new: str


class Mend(NamedTuple):
    """A mend, and the edits that take it back.

    Attributes:
        kind: Of the worlds in which it is to be seen (`referee.WORLDS`).
    """

    title: str
    edits: tuple[Edit, ...]
    kind: str = "all"


def _of_daemons(title: str, *edits: tuple[str, str, str]) -> Mend:
    return Mend(title, tuple(Edit(*edit) for edit in edits), "daemons")


MENDS = {
    "visits": Mend(
        "race: A 421 or x.7.z in a transaction is one of two visits",
        (
            Edit(
                "routing/race.py",
                "TRANSIENT_VISITS = 2",
                "TRANSIENT_VISITS = 1",
            ),
        ),
    ),
    "helo": Mend(
        "trouble: A refusal that only names our HELO is about the mail",
        (
            Edit(
                "delivery/refusals.py",
                "reply.code == 421 or reply.is_positive:",
                "reply.code == 421 or reply.is_positive or 'client' in reply.text:",
            ),
        ),
    ),
    "session": Mend(
        "trouble: A refusal of our session is the answer when no other host is left",
        (
            Edit(
                "delivery/refusals.py",
                ".LAST_RESORT, bounced)",
                ".NEXT_HOST, deferred)",
            ),
        ),
    ),
    "session-beside-4yz": Mend(
        "history: A refusal of our session is final whatever the others said",
        (
            Edit(
                "delivery/failures.py",
                "    if reason is GiveUpReason.EXHAUSTED:\n        final",
                "    if reason is GiveUpReason.EXHAUSTED and not any(\n"
                "        one.finding.verdict is Verdict.TRANSIENT for one in failures\n"
                "    ):\n        final",
            ),
        ),
    ),
    "doubt": Mend(
        "race: A host in doubt gives way to the others in the next attempt",
        (
            Edit(
                "routing/race.py",
                "sorted(enumerate(entrants), key=lambda one: doubts(one[1]))",
                "enumerate(one._replace(doubts=0, doubts_here=0) for one in entrants)",
            ),
        ),
    ),
    "doubt-of-address": Mend(
        "race: Of a host in doubt, another address is asked first",
        (
            Edit(
                "routing/runner.py",
                "entrant.doubts, entrant.doubts_here",
                "entrant.doubts, 0",
            ),
        ),
    ),
    "doubt-while-slow": Mend(
        "race: Nobody who may have the message is asked while another may still answer",
        (
            Edit(
                "routing/race.py",
                "max(ends, self._copy_risked_at(runner))",
                "ends",
            ),
        ),
    ),
    "patience": Mend(
        "race: A host that only outlasts our patience has not failed",
        (
            Edit(
                "routing/runner.py",
                "self.standing = Standing.TURNED_AWAY",
                "self.standing = Standing.FAILED",
            ),
        ),
    ),
    "two-addresses": Mend(
        "race: Two addresses that put off are one host, and the next one is asked",
        (
            Edit(
                "routing/race.py",
                "is_new = len({*said_4yz})",
                "is_new = False and len({*said_4yz})",
            ),
        ),
    ),
    "unresolved": Mend(
        "engine: A worse host's refusal is not final while a better one cannot be looked up",
        (
            Edit(
                "routing/unresolved.py",
                "now - since.first < SOFT",
                "False",
            ),
        ),
    ),
    "stray": Mend(
        "session: What comes before a command leaves is no answer to it",
        (
            Edit(
                "delivery/dialogue.py",
                "self.smtp.awaits and not self.smtp.is_asking:",
                "False:",
            ),
            # Each of the two would keep the other's fault from showing.
            Edit(
                "delivery/dialogue.py",
                "self.phase.now is Phase.DOT and not self.has_arrived()",
                "False",
            ),
        ),
    ),
    "slow-ehlo": Mend(
        "session: A host that is slow to answer EHLO has more time for STARTTLS, too",
        (
            Edit(
                "delivery/session.py",
                "patience += 2 * hello_seconds",
                "pass",
            ),
        ),
    ),
    "slow-store": Mend(
        "journal: Refusals are forgotten when all is said; a slow store is waited for",
        (
            Edit(
                "delivery/patience.py",
                "ANSWER, ANSWER_AFTER_DOT = 10.0, 60.0",
                "ANSWER, ANSWER_AFTER_DOT = 1.0, 1.0",
            ),
        ),
    ),
    "tls-wanted": Mend(
        "tls: Broken STARTTLS is believed of a host's name, from two messages",
        (
            Edit(
                "delivery/offer.py",
                "if not self.session.might_have_tls:",
                "if True:",
            ),
        ),
    ),
    "turned-away": Mend(
        "reachability: A host that was ready a minute ago and turns one away is not down",
        (
            Edit(
                "routing/reachability.py",
                "was_ready_lately and finding.verdict in TURNED_AWAY:",
                "False:",
            ),
        ),
    ),
    "order-of-equals": Mend(
        "engine: Equal hosts keep their order over the retries of a message",
        (
            Edit(
                "delivery/plan.py",
                "reverse_path, forward_path, destination_domain, self._utc()",
                "str(self._utc()), forward_path, destination_domain, self._utc()",
            ),
        ),
    ),
    "mailbox-full": Mend(
        "trouble: A mailbox with too many messages is no transaction with too many recipients",
        (
            Edit(
                "delivery/refusals.py",
                "(status is not None and status.subject == 2)",
                "False",
            ),
        ),
    ),
    "places": Mend(
        "admission: One destination that does not answer does not take all processes",
        (
            Edit(
                "routing/places.py",
                "limit > 0 and taken * 4 >= limit * 3",
                "False",
            ),
        ),
    ),
    "burst": Mend(
        "places: A burst of healthy mail is not deferred beside a bad domain",
        (
            Edit(
                "routing/places.py",
                "if known is Lately.WELL:",
                "if False:",
            ),
        ),
    ),
    "second-transaction": Mend(
        "offer: The second transaction of a message counts as one over an old session",
        (
            Edit(
                "delivery/session.py",
                "self.is_old = self.transactions > 0",
                "self.is_old = self.is_reused",
            ),
        ),
        kind="limits",
    ),
    "cut-off": Mend(
        "journal: A host that could not answer the dot keeps its chances",
        (
            Edit(
                "delivery/journal.py",
                "entry.past.cut_off(entry.relay)",
                "entry.past.doubted(entry.relay)",
            ),
        ),
    ),
    "dead-dot": Mend(
        "journal: The dot of a process that is dead is a doubt",
        (
            Edit(
                "delivery/journal.py",
                "entry.past.cut_off(entry.relay)",
                "entry.past",
            ),
        ),
    ),
    "late-250": Mend(
        "late_reply: The daemon listens on where a final dot was not answered in time",
        (
            Edit(
                "delivery/settlement.py",
                "if reply is not None and reply.is_positive:",
                "if False:",
            ),
        ),
    ),
    "late-retry": Mend(
        "late_reply: A retry that comes while it listens is answered without dialling",
        (
            Edit(
                "delivery/journal.py",
                "if is_at_work and entry.status is not None and",
                "if False and",
            ),
        ),
    ),
    "late-refusal": Mend(
        "late_reply: A host that refuses late keeps its place in the order",
        (
            Edit(
                "delivery/journal.py",
                "if awaited == _REPLY:",
                "if False:",
            ),
        ),
    ),
    "late-killed": Mend(
        "late_reply: What was listened to by a process that is dead is a doubt",
        (
            Edit(
                "delivery/journal.py",
                "EntryState.WAITING, owner, until, relay, outcome.status, text, past",
                "EntryState.WAITING, owner, until, relay, outcome.status, text, NO_PAST",
            ),
        ),
    ),
    "busy": Mend(
        "journal: Who is at it is left at it",
        (
            Edit(
                "delivery/journal.py",
                "if is_at_work:",
                "if False:",
            ),
        ),
    ),
    "never-dial": Mend(
        "dialable: Nobody makes us dial ourselves",
        (
            Edit(
                "routing/dialable.py",
                "if self.is_exempt(address):",
                "if True:",
            ),
        ),
    ),
    "loop": Mend(
        "own: Whoever is no better than we are is not dialled (RFC 5321 §5.1)",
        (
            Edit(
                "routing/selection.py",
                "one.host.preference < mine]",
                "one.host.preference <= mine]",
            ),
        ),
    ),
    "cut-input": Mend(
        "pipe: What may be a part of a message is not sent",
        (
            Edit(
                "delivery/offer.py",
                "if not may_send:",
                "if False:",
            ),
        ),
    ),
    # What a daemon does: sessions that are used again, the fast path, claims in memory.
    "record": _of_daemons(
        "fast_path: No dot before its note is in the journal, and is the first one",
        ("delivery/claims.py", "told(is_recorded)", "told(True)"),
    ),
    "note": _of_daemons(
        "claims: Of two processes, one has the note before the dot",
        (
            "delivery/claims.py",
            'raise TakenOver("another process has taken the message over")',
            "pass",
        ),
    ),
    "claims-in-memory": _of_daemons(
        "claims: A daemon keeps its claims in memory",
        (
            "delivery/owner.py",
            "if holder != owner and holder in self._under_way and now < holds_until:",
            "if False:",
        ),
        # Each of the two would keep the other's fault from showing.
        (
            "delivery/claims.py",
            'raise TakenOver("another process has taken the message over")',
            "pass",
        ),
        ("delivery/claims.py", "told(is_recorded)", "told(True)"),
    ),
    "leave-before-dot": _of_daemons(
        "fast_path: The message begins anew before the dot only",
        (
            "routing/fast_path.py",
            "Input.TAKEN: Step(State.OVER, Action.SETTLE),\n        Input.OTHER: _HAND_OVER",
            "Input.TAKEN: Step(State.OVER, Action.SETTLE),\n        Input.OTHER: _BEGIN_ANEW",
        ),
    ),
    "refused-recipient": _of_daemons(
        "fast_path: Only what accepts is ordinary",
        (
            "delivery/fast_path.py",
            "reply is not None and reply.is_positive",
            "reply is not None",
        ),
    ),
    "silence": _of_daemons(
        "fast_path: One alarm notices a host that says nothing",
        (
            "delivery/fast_path.py",
            "if self._context.clock() - self._heard_at >= LONGEST_SILENCE:",
            "if False:",
        ),
    ),
    "fast-cut-input": _of_daemons(
        "fast_path: It is known whether the dot may be sent",
        (
            "delivery/fast_path.py",
            "return self._context.clock() - self._permitted_at < LONGEST_SILENCE",
            "return True",
        ),
    ),
    "dial-anew": _of_daemons(
        "reuse: The end of a session that had waited is no finding",
        (
            "routing/reuse.py",
            "if ended is not None or course.is_sender_refused:",
            "if False:",
        ),
    ),
    "rset": _of_daemons(
        "session: RSET between two messages",
        ("delivery/session.py", "self._owes_rset = True", "self._owes_rset = False"),
        (
            "delivery/session.py",
            "self.course = Course()\n        self.dialogue.smtp.rset()",
            "self.course = Course()",
        ),
        ("delivery/fast_path.py", "due = 2 + len", "due = 1 + len"),
        ("delivery/fast_path.py", "forget_heard(2 + len", "forget_heard(1 + len"),
    ),
}
