"""Supplies sessions that are ready, and takes them back after use.

The attempt and the probe get their sessions only here. Today each session is dialled
for its user, and quits when it is given back.
"""

from __future__ import annotations

from collections.abc import Mapping

from mxpolicy.delivery.approach import Approach
from mxpolicy.delivery.connect import Egress, connect
from mxpolicy.delivery.dialogue import Listener
from mxpolicy.delivery.session import Session
from mxpolicy.routing.candidate import Candidate

__all__ = ["Sessions"]


class Sessions:
    """The sessions of one engine.

    Attributes:
        egresses: By name, as in `Candidate.egress`.
    """

    def __init__(self, egresses: Mapping[str, Egress]) -> None:
        self.egresses = egresses

    async def open(
        self, candidate: Candidate, approach: Approach, listener: Listener
    ) -> Session:
        """Return a session with *candidate* that is ready for MAIL.

        Args:
            approach: How it is reached; see `mxpolicy.delivery.connect` for what is
                tried after that.
            listener: Is told what happens, until the session is given back.

        Raises:
            SessionFailed: The host does not get us there.
            LocalTrouble: We do not get there.
        """
        egress = self.egresses[candidate.egress]
        return await connect(egress, candidate, approach, listener)

    def give_back(self, session: Session) -> None:
        """Take *session* back, also a broken one: its user has finished with it."""
        session.quit()
