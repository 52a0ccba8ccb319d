"""The SQLite file that holds the history.

``$TRIMTAB_HISTORY`` names it (empty: nothing is kept), else it lies in the user's data folder.  Any number of
processes may use it at once.  Keeping and finding never fail: what cannot be read or written is said once, on
stderr, and the work goes on.  Looking at the history is work of its own, and says what is wrong as an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.corrections import Measurement, Traits
from trimtab.errors import NotFound, TrimtabError, UnreadableFile
from trimtab.folders import HISTORY_VARIABLE, history_file
from trimtab.store.entry import Entry

if TYPE_CHECKING:
    import sqlite3

BUSY_SECONDS = 10.0
"""How long to wait for another process that writes."""
NEWEST = 50
"""Runs of the job and of its like that an estimate looks at, at most."""

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seconds_since_epoch REAL NOT NULL,
        how TEXT NOT NULL,
        config TEXT NOT NULL,
        model TEXT NOT NULL,
        gpu TEXT NOT NULL,
        gpus_per_node INTEGER NOT NULL,
        nodes INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        tool_version TEXT NOT NULL,
        job TEXT,
        kin TEXT,
        parameters INTEGER,
        tokens INTEGER,
        figures TEXT NOT NULL,
        document TEXT NOT NULL
    );
    CREATE INDEX runs_of_a_job ON runs (job);
    CREATE INDEX runs_alike ON runs (kin);
    """,
)
"""Each brings the file one version on; ``PRAGMA user_version`` counts them.  Never change one: add one."""

_COLUMNS = ("seconds_since_epoch", "how", "config", "model", "gpu", "gpus_per_node", "nodes", "outcome",
            "tool_version")  # fmt: skip
_said: set[str] = set()


def _history() -> Path | None:
    file = history_file()
    return None if file is None else Path(file)


def keep(entry: Entry) -> int | None:
    """Store ``entry`` and return its number; None, with one warning, if that cannot be done."""
    file = _history()
    if file is None:
        return None
    try:
        with _open(file, create=True) as connection:
            return _insert(connection, entry)
    except TrimtabError as error:
        _warn(f"this run is not in the history: {error}")
        return None


def measurements(own: Traits) -> tuple[Measurement, ...]:
    """What the newest stored runs of the job and of its like tell; none, with one warning, if unreadable."""
    file = _history()
    if file is None or not file.exists():
        return ()
    query = "SELECT * FROM runs WHERE job = ? OR kin = ? ORDER BY job = ? DESC, id DESC LIMIT ?"
    try:
        with _open(file) as connection:
            rows = connection.execute(query, (own.job, own.kin, own.job, NEWEST)).fetchall()
            found = [_entry(row).measurement() for row in rows]
    except TrimtabError as error:
        _warn(f"nothing is corrected by earlier runs: {error}")
        return ()
    return tuple(one for one in found if one is not None)


def entries(*, config: str | None = None, limit: int | None = None) -> tuple[Entry, ...]:
    """The stored runs, newest first.

    Raises:
        UnreadableFile: the file is no history, or damaged.
    """
    file = _history()
    if file is None or not file.exists():
        return ()
    with _open(file) as connection:
        rows = connection.execute(
            "SELECT * FROM runs WHERE ? IS NULL OR config = ? ORDER BY id DESC LIMIT ?",
            (config, config, -1 if limit is None else limit),
        ).fetchall()
        return tuple(_entry(row) for row in rows)


def entry(number: int) -> Entry:
    """The stored run of that number.

    Raises:
        NotFound: there is none.
        UnreadableFile: the file is no history, or damaged.
    """
    file = _history()
    if file is not None and file.exists():
        with _open(file) as connection:
            row = connection.execute("SELECT * FROM runs WHERE id = ?", (number,)).fetchone()
            if row is not None:
                return _entry(row)
    raise NotFound("run", str(number), (), cure="`trimtab history` lists them.")


def forget(numbers: Sequence[int] | None) -> int:
    """Take the runs of these numbers away, or all (None); returns how many there were.

    Raises:
        NotFound: one of them is not there; nothing is taken away.
        UnreadableFile: the file is no history, damaged, or cannot be written.
    """
    file = _history()
    if file is None or not file.exists():
        if numbers:
            raise NotFound("run", str(numbers[0]), (), cure="The history is empty.")
        return 0
    with _open(file) as connection, _transaction(connection):
        if numbers is None:
            return int(connection.execute("DELETE FROM runs").rowcount)
        for number in dict.fromkeys(numbers):
            if not connection.execute("DELETE FROM runs WHERE id = ?", (number,)).rowcount:
                raise NotFound("run", str(number), (), cure="`trimtab history` lists them.")
        return len(dict.fromkeys(numbers))


@contextlib.contextmanager
def _open(file: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """The history, at this version; every error of SQLite's becomes one of ours."""
    import sqlite3  # only those who have a history pay for it

    try:
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        mode = "rwc" if create else "rw"
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
    except (OSError, sqlite3.Error) as error:
        raise UnreadableFile(f"{file}: cannot be opened ({error}). {_cure()}") from None
    try:
        connection.row_factory = sqlite3.Row
        _migrate(connection, file)
        yield connection
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise UnreadableFile(f"{file}: cannot be used ({error}). {_cure()}") from None
    finally:
        connection.close()


def _cure() -> str:
    return f"Move it away to begin a new one, or set {HISTORY_VARIABLE} to another place (empty: none)"


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    import sqlite3

    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(MIGRATIONS):
        return
    if version < len(MIGRATIONS):
        with contextlib.suppress(sqlite3.OperationalError):  # another process does the same right now
            connection.execute("PRAGMA journal_mode = WAL")  # readers beside a writer; stays with the file
        with _transaction(connection):
            version = connection.execute("PRAGMA user_version").fetchone()[0]  # another may have been faster
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        return
    raise UnreadableFile(
        f"{file}: a newer Trimtab wrote it (its form is {version}, {len(MIGRATIONS)} is known here). "
        f"Upgrade trimtab, or point {HISTORY_VARIABLE} at another place"
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, entry: Entry) -> int:
    own = entry.traits
    row: dict[str, Any] = {name: getattr(entry, name) for name in _COLUMNS}
    row |= dataclasses.asdict(own) if own else dict.fromkeys(("job", "kin", "parameters", "tokens"))
    row |= {"figures": json.dumps(entry.figures), "document": json.dumps(entry.document)}
    with _transaction(connection):
        if entry.how == "phantom" and own is not None:
            # the same question has the same answer: the newer stands for both
            connection.execute("DELETE FROM runs WHERE how = 'phantom' AND job = ?", (own.job,))
        marks = ", ".join(f":{name}" for name in row)
        cursor = connection.execute(f"INSERT INTO runs ({', '.join(row)}) VALUES ({marks})", row)  # noqa: S608
        return int(cursor.lastrowid or 0)


def _entry(row: sqlite3.Row) -> Entry:
    own = None
    if row["job"] is not None:
        own = Traits(job=row["job"], kin=row["kin"], parameters=row["parameters"], tokens=row["tokens"])
    return Entry(
        id=row["id"],
        traits=own,
        figures=json.loads(row["figures"]),
        document=json.loads(row["document"]),
        **{name: row[name] for name in _COLUMNS},
    )


def _warn(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(f"warning: {text}", file=sys.stderr)  # noqa: T201
