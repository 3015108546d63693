"""The cases: what stands in a domain's way, and what must become of its mail.

A case is data (see `case`). To add one, add an entry to a table in `cases_greeting`,
`cases_transaction`, `cases_order` or `cases_names`; whatever it needs that no host,
treatment or record there can express belongs into `smtp_host`, `firewall` or `names` as
data, too. No two have one name.
"""

from . import cases_greeting, cases_names, cases_order, cases_transaction
from .case import Case, Expected, Host, Placed, place, place_judged

__all__ = ["CASES", "Case", "Expected", "Host", "Placed", "place", "place_judged"]

CASES: tuple[Case, ...] = (
    *cases_greeting.CASES,
    *cases_transaction.CASES,
    *cases_order.CASES,
    *cases_names.CASES,
)
