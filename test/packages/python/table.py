#!/usr/bin/python3
"""The table of doc/clients.md: retention and body, the way each client passes them. A line "ok" or "FAILED" for each."""
import asyncio
import datetime
import uuid

import asyncpg
import psycopg
import psycopg2
from sqlalchemy import create_engine, text

BODY = b"\x00\\\xff"
SCOPE = "acct_1 table"
DAYS = datetime.timedelta(days=15)
BEGIN = "SELECT * FROM idempotent_begin({}, {}, retention => {})"
FINISH = "SELECT idempotent_finish({}, {}, body => {})"


def check(name, key):
    with psycopg.connect("") as db:
        row = db.execute("SELECT body, expires_at - finished_at BETWEEN '15 days' AND '16 days' FROM idempotency_keys WHERE key = %s",
                         [key]).fetchone()
    print("ok     " if row == (BODY, True) else "FAILED ", name, flush=True)


def dbapi(name, connect, retention):
    key, db = str(uuid.uuid4()), connect("")
    cursor = db.cursor()
    cursor.execute(BEGIN.format("%s", "%s", "%s"), [SCOPE, key, retention])
    cursor.execute(FINISH.format("%s", "%s", "%s"), [SCOPE, key, BODY])
    db.commit()
    db.close()
    check(f"{name}: retention as {type(retention).__name__}, body as bytes", key)


async def with_asyncpg(mark, retention):
    key, db = str(uuid.uuid4()), await asyncpg.connect()
    async with db.transaction():
        await db.fetchrow(BEGIN.format("$1", "$2", mark), SCOPE, key, retention)
        await db.execute(FINISH.format("$1", "$2", "$3"), SCOPE, key, BODY)
    await db.close()
    check(f"asyncpg: retention as {type(retention).__name__}, body as bytes", key)


def with_sqlalchemy(driver):
    key = str(uuid.uuid4())
    with create_engine(f"postgresql+{driver}://", future=True).begin() as db:
        db.execute(text(BEGIN.format(":scope", ":key", "CAST(CAST(:r AS text) AS interval)")), {"scope": SCOPE, "key": key, "r": "15 days"})
        db.execute(text(FINISH.format(":scope", ":key", ":body")), {"scope": SCOPE, "key": key, "body": BODY})
    check(f"SQLAlchemy over {driver}: retention as str, body as bytes", key)


for retention in ("15 days", DAYS):
    dbapi("psycopg 3", psycopg.connect, retention)
    dbapi("psycopg2", psycopg2.connect, retention)
asyncio.run(with_asyncpg("$3", DAYS))
asyncio.run(with_asyncpg("$3::text::interval", "15 days"))
with_sqlalchemy("psycopg2")
