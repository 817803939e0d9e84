#!/usr/bin/python3
"""psycopg 3 in three round trips: BEGIN and begin, the work, finish and COMMIT. With PgBouncer, prepare_threshold=None.

In a pipeline a statement is sent at once, and only fetchone() and the pipeline's end wait for answers. Begin is waited for
before the work, so a retry does not do the work again. BEGIN and COMMIT are statements here because db.transaction()
would wait for finish before it sends COMMIT.
"""
import sys

from psycopg.types.json import Jsonb

import orders_psycopg


def place_order(db, account, key, order):
    scope = f"{account} orders"                     # the account from the authentication, never from the client's word
    try:
        with db.pipeline():
            db.execute("BEGIN")
            attempt = db.execute("SELECT * FROM idempotent_begin(%s, %s, request => %s)", [scope, key, Jsonb(order)]).fetchone()
            if attempt.replayed:
                db.execute("ROLLBACK")
                return attempt.response
            row = db.execute("INSERT INTO orders (item, quantity) VALUES (%(item)s, %(quantity)s) RETURNING id", order).fetchone()
            response = {"id": row.id}
            db.execute("SELECT idempotent_finish(%s, %s, %s)", [scope, key, Jsonb(response)])
            db.execute("COMMIT")                    # if finish fails, the server skips it
    except BaseException:
        db.rollback()
        raise
    return response                                 # the pipeline's end has waited for COMMIT


if __name__ == "__main__":
    orders_psycopg.place_order = place_order
    orders_psycopg.main(*sys.argv[1:])
