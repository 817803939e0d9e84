#!/usr/bin/python3
"""asyncpg. It sends values in binary: jsonb takes JSON text, a key must be a str, an interval a timedelta or $n::text::interval.

With PgBouncer in transaction mode, statement_cache_size=0.
"""
import asyncio
import json
import os
import sys

import asyncpg


async def connect():
    return await asyncpg.connect(statement_cache_size=0)


async def place_order(db, account, key, order):
    scope = f"{account} orders"             # the account from the authentication, never from the client's word
    async with db.transaction():
        attempt = await db.fetchrow(
            "SELECT * FROM idempotent_begin($1, $2, request => $3::jsonb, retention => $4::text::interval)",
            scope, key, json.dumps(order), "24 hours")
        if attempt["replayed"]:
            return json.loads(attempt["response"])
        number = await db.fetchval("INSERT INTO orders (item, quantity) VALUES ($1, $2) RETURNING id",
                                   order["item"], order["quantity"])
        response = {"id": number}
        await db.execute("SELECT idempotent_finish($1, $2, $3::jsonb)", scope, key, json.dumps(response))
        return response


# For the test.
async def begin_and_commit(db, key):
    async with db.transaction():
        await begin_in_autocommit(db, key)


async def begin_in_autocommit(db, key):
    await db.execute("SELECT idempotent_begin('acct_1 orders', $1)", key)


async def main(what, key, item=None, quantity=None):
    db = await connect()
    try:
        if what == "place":
            print((await place_order(db, os.environ["ACCOUNT"], key, {"item": item, "quantity": int(quantity)}))["id"])
        elif what == "begin":
            await begin_and_commit(db, key)
        else:
            await begin_in_autocommit(db, key)
    except asyncpg.PostgresError as error:
        print(error.sqlstate)
    finally:
        await db.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
