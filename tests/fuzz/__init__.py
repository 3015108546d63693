"""Bytes from strangers, in every order: what may never happen, and a search for it.

`mxpolicy` reads what hosts, name servers and senders write. `targets` says for each
reader what must hold whatever it is given. The suite tries them on the corpus and
on a few hundred mutations of it; to search longer::

    python -m tests.fuzz SECONDS [TARGET...]

An input that breaks something is written to ``.lab/fuzz/``; mend what it shows, and
put it into ``corpus``.
"""
