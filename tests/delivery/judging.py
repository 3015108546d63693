"""A host's replies, judged."""

from __future__ import annotations

from mxpolicy.delivery import refusals
from mxpolicy.delivery.trouble import Judgement
from mxpolicy.protocol.smtp_states import Verb
from mxpolicy.reply import Reply

__all__ = ["RELAY", "reply", "said"]

RELAY = "mx.example[192.0.2.1]:25"


def reply(text: str) -> Reply:
    """Make a reply from its lines as a host writes them."""
    lines = text.split("|")
    return Reply(int(lines[0][:3]), tuple(line[4:] for line in lines))


def said(verb: Verb, text: str, *, sole_recipient: bool = False) -> Judgement:
    """Judge a refusal of *verb* by `RELAY`."""
    return refusals.judge_reply(verb, reply(text), RELAY, sole_recipient=sole_recipient)
