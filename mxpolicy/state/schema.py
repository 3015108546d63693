"""What is in a state file: one table and one index of it, and nothing that acts.

A file is ours when its header says so (`APPLICATION`, `VERSION`) and its schema is, word
for word, what `create` makes. Triggers and views are refused everywhere. Unknown tables
are ignored. Nothing in the schema may call a function
(https://sqlite.org/pragma.html#pragma_trusted_schema).
"""

# ruff: noqa: S608 - the statements are made of constants

from __future__ import annotations

from typing import TYPE_CHECKING

from mxpolicy.errors import StoreError
from mxpolicy.state.store import LIGHT, MEDIUM, StoreDistrusted
from mxpolicy.state.trust import removal

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "ADD",
    "DELETE",
    "EVICT",
    "GET",
    "PURGE",
    "PUT",
    "REPLACE",
    "SCAN",
    "VERSION",
    "OtherVersion",
    "check",
    "create",
    "guard",
    "renew",
]

# "mxpo": how file(1) and we recognise the file (PRAGMA application_id).
APPLICATION = 0x6D78706F
# PRAGMA user_version. The next writer empties a file of an earlier version: what it
# remembered is learned again.
VERSION = 3

# Bytes of a value; ours have hundreds. UTC seconds of the last end that makes sense.
_MAX_VALUE = 64 * 1024
_LAST_END = 1e11

# Rows of a small weight go first; see `mxpolicy.state.store.Store`.
_TABLE = """
CREATE TABLE rows (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    expires REAL NOT NULL,
    weight INTEGER NOT NULL
) WITHOUT ROWID
""".strip()
_INDEX = "CREATE INDEX rows_by_weight ON rows (weight, expires)"

_SCHEMA = {("table", "rows"): _TABLE, ("index", "rows_by_weight"): _INDEX}

# A row that we can have written; typeof() and length() do not read a large value.
_SOUND = (
    f"typeof(rows.value) = 'blob' AND length(rows.value) <= {_MAX_VALUE}"
    f" AND typeof(rows.expires) = 'real' AND rows.expires < {_LAST_END}"
)
_LIVE = f"rows.expires > :now AND {_SOUND}"

GET = f"SELECT :key, value FROM rows WHERE key = :key AND {_LIVE}"
# As bytes: a key that is not text must not hide the other rows.
SCAN = f"""
SELECT CAST(key AS BLOB), value, expires FROM rows
WHERE key >= :first AND key < :last AND {_LIVE} ORDER BY key
"""
PUT = f"""
INSERT INTO rows (key, value, expires, weight)
VALUES (:key, :value, :expires, ifnull(:weight, {LIGHT}))
ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires,
weight = ifnull(:weight, {MEDIUM})
"""
ADD = f"{PUT} WHERE NOT ({_LIVE})"
REPLACE = f"""
UPDATE rows SET value = :value, expires = :expires, weight = ifnull(:weight, {MEDIUM})
WHERE key = :key AND value = :old AND {_LIVE}
"""
DELETE = f"""
DELETE FROM rows WHERE key = :key AND (:old IS NULL OR (value = :old AND {_LIVE}))
"""

# Steps, each by the index: :step rows at most, however large the table is.
PURGE = """
DELETE FROM rows WHERE key IN (
    SELECT key FROM rows INDEXED BY rows_by_weight
    WHERE weight = :weight AND expires <= :now ORDER BY expires LIMIT :step
)
"""
EVICT = """
DELETE FROM rows WHERE key IN (
    SELECT key FROM rows INDEXED BY rows_by_weight
    ORDER BY weight, expires LIMIT :step
)
"""


class OtherVersion(StoreError):
    """The file is of an earlier version; `renew` makes it one of this version."""


def guard(db: sqlite3.Connection) -> None:
    """Keep the schema from running code. Call it before anything is read."""
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("PRAGMA cell_size_check = ON")


def create(db: sqlite3.Connection) -> None:
    """Make an empty database one of ours."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute(_TABLE)
    db.execute(_INDEX)


def check(db: sqlite3.Connection, path: str) -> None:
    """Raise unless it is one of ours.

    Raises:
        OtherVersion: Of an earlier version.
        StoreDistrusted: Of a later version, or its schema is not what we make.
        StoreError: It is another program's.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise StoreError(f"{path}: not a state file of mxpolicy")
    if version > VERSION or version < 1:
        why = f"{path}: made by another version of mxpolicy"
        raise StoreDistrusted(why, removal(path))
    found = {}
    for kind, name, table, sql in db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master"
    ):
        if kind in ("trigger", "view"):
            raise StoreDistrusted(f"{path} has a {kind}, {name!r}", removal(path))
        if str(table).lower() == "rows" or (kind, name) in _SCHEMA:
            found[kind, name] = sql
    if version < VERSION:
        raise OtherVersion(f"{path}: made by an earlier version of mxpolicy")
    if found != _SCHEMA:
        raise StoreDistrusted(f"{path} has another table than ours", removal(path))


def renew(db: sqlite3.Connection) -> None:
    """Empty a file of an earlier version, unless another process has just done it."""
    db.execute("PRAGMA secure_delete = OFF")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version < VERSION:
            db.execute("DROP TABLE IF EXISTS rows")
            db.execute(_TABLE)
            db.execute(_INDEX)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
