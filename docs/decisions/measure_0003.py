"""Measure ADR 0003: searched fields as plain columns, against columns generated from the JSON document."""

import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

RUNS = 4000
GROUP = 8
FIELDS = ("user_id", "project_id", "status", "lang", "due_at")


def document(number: int, status: str) -> dict[str, object]:
    """Return a document of about the size that an execution has."""
    return {
        "id": f"{number:032x}",
        "user_id": "u" * 36,
        "project_id": "p" * 36,
        "status": status,
        "lang": "python",
        "due_at": float(number),
        "source": "x" * 600,
        "history": [{"version": n, "type": "execution.started", "at": "2026-01-01T00:00:00Z"} for n in range(6)],
    }


def run(folder: Path, *, generated: bool) -> float:
    """Return microseconds per unit (one insert or update)."""
    connection = sqlite3.connect(folder / f"{generated}.db", isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=normal")
    if generated:
        columns = ", ".join(f"{name} generated always as (json_extract(doc, '$.{name}')) virtual" for name in FIELDS)
    else:
        columns = ", ".join(FIELDS)
    connection.execute(f"create table t (id text unique, doc text, {columns})")
    connection.execute("create index by_user on t (user_id, id)")
    connection.execute("create index by_due on t (due_at) where due_at is not null")
    insert = "insert into t (id, doc) values (?,?)" if generated else "insert into t values (?,?,?,?,?,?,?)"
    update = "update t set doc=? where id=?"
    if not generated:
        update = "update t set doc=?, status=?, due_at=? where id=?"
    begun = time.perf_counter()
    units = 0
    for start in range(0, RUNS, GROUP):
        for status in ("queued", "running", "completed"):
            connection.execute("begin")
            for number in range(start, start + GROUP):
                body = document(number, status)
                text = json.dumps(body)
                if status == "queued":
                    values = (body["id"], text) if generated else (body["id"], text, *(body[f] for f in FIELDS))
                    connection.execute(insert, values)
                elif generated:
                    connection.execute(update, (text, body["id"]))
                else:
                    connection.execute(update, (text, status, body["due_at"], body["id"]))
                units += 1
            connection.execute("commit")
    return (time.perf_counter() - begun) / units * 1e6


if __name__ == "__main__":
    ratios = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            plain = run(Path(folder), generated=False)
            generated = run(Path(folder), generated=True)
        ratios.append(generated / plain)
        print(f"plain {plain:.1f} us a unit, generated {generated:.1f} us, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")
