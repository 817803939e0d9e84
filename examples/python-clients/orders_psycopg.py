#!/usr/bin/python3
"""psycopg 3. With PgBouncer in transaction mode, prepare_threshold=None."""
import os
import sys

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb


def connect():
    return psycopg.connect(autocommit=True, prepare_threshold=None, row_factory=namedtuple_row)


def place_order(db, account, key, order):
    scope = f"{account} orders"                     # the account from the authentication, never from the client's word
    with db.transaction():
        attempt = db.execute("SELECT * FROM idempotent_begin(%s, %s, request => %s)", [scope, key, Jsonb(order)]).fetchone()
        if attempt.replayed:
            return attempt.response
        row = db.execute("INSERT INTO orders (item, quantity) VALUES (%(item)s, %(quantity)s) RETURNING id", order).fetchone()
        response = {"id": row.id}
        db.execute("SELECT idempotent_finish(%s, %s, %s)", [scope, key, Jsonb(response)])
        return response


# For the test.
def begin_and_commit(db, key):
    with db.transaction():
        begin_in_autocommit(db, key)


def begin_in_autocommit(db, key):
    db.execute("SELECT idempotent_begin('acct_1 orders', %s)", [key])


def main(what, key, item=None, quantity=None):
    db = connect()
    try:
        if what == "place":
            print(place_order(db, os.environ["ACCOUNT"], key, {"item": item, "quantity": int(quantity)})["id"])
        elif what == "begin":
            begin_and_commit(db, key)
        else:
            begin_in_autocommit(db, key)
    except psycopg.Error as error:
        print(error.sqlstate)


if __name__ == "__main__":
    main(*sys.argv[1:])
