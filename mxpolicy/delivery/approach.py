"""How a candidate is connected to, and what is asked of it before the final dot. Pure.

A path may swallow packets of an ordinary session. Two other approaches get around that:

* Small segments, where the path swallows large ones (RFC 2923 §2.1).
* A dot that is sent before the body is acknowledged. A firewall may pass the body and
  drop the acknowledgements for it, which looks as if it dropped the body. The reply to a
  dot comes through.
"""

from __future__ import annotations

from typing import NamedTuple

from mxpolicy.routing.tls_requirement import Level, Source, TlsRequirement

__all__ = ["SMALL_SEGMENT", "Approach"]

# Bytes. Every host must take segments of this size (RFC 9293 §3.7.1).
SMALL_SEGMENT = 536


class Approach(NamedTuple):
    """One way to begin and to hold a session.

    Attributes:
        tls: The TLS that is asked of it.
        segment_size: Largest TCP segment in bytes, both ways; None is the kernel's.
        waits_for_body: Whether the dot waits until the host's kernel has acknowledged
            the mail data. Other senders do not wait.
    """

    tls: TlsRequirement
    segment_size: int | None = None
    waits_for_body: bool = True

    @property
    def is_ordinary(self) -> bool:
        """Whether it does nothing about a path that swallows packets."""
        return self.segment_size is None and self.waits_for_body

    @property
    def had_to_be_in_clear(self) -> bool:
        """Whether TLS has failed in a session right before."""
        return self.tls.source is Source.FAILURE

    def with_small_segments(self) -> Approach:
        """Return the same, with small segments."""
        return self._replace(segment_size=SMALL_SEGMENT)

    def in_clear(self) -> Approach:
        """Return the same after a failure of TLS."""
        return self._replace(tls=TlsRequirement(Level.NONE, Source.FAILURE))

    def after_stall(self, *, others_left: bool) -> Approach | None:
        """Return what to try next when the host acknowledged nothing more.

        Args:
            others_left: Other hosts may still be asked. They may do better than a dot
                that leaves us in doubt.

        =======================  ===================================================
        what stalled             what is tried next
        =======================  ===================================================
        ordinary segments        small segments
        small segments           ordinary segments, and the dot before the body is
                                 acknowledged; nothing while others are left
        such an early dot        nothing
        =======================  ===================================================
        """
        if self.is_ordinary:
            return self.with_small_segments()
        if self.waits_for_body and not others_left:
            return self._replace(segment_size=None, waits_for_body=False)
        return None
