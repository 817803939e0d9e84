#!/usr/bin/python3
"""psycopg 3. With PgBouncer in transaction mode, prepare_threshold=None."""
import sys

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb


def connect():
    return psycopg.connect(autocommit=True, prepare_threshold=None, row_factory=namedtuple_row)


def place_order(db, key, order):
    with db.transaction():
        attempt = db.execute("SELECT * FROM idempotent_begin('orders', %s, request => %s)", [key, Jsonb(order)]).fetchone()
        if attempt.replayed:
            return attempt.response
        row = db.execute("INSERT INTO orders (item, quantity) VALUES (%(item)s, %(quantity)s) RETURNING id", order).fetchone()
        response = {"id": row.id}
        db.execute("SELECT idempotent_finish('orders', %s, %s)", [key, Jsonb(response)])
        return response


# For the test.
def begin_and_commit(db, key):
    with db.transaction():
        begin_in_autocommit(db, key)


def begin_in_autocommit(db, key):
    db.execute("SELECT idempotent_begin('orders', %s)", [key])


def main(what, key, item=None, quantity=None):
    db = connect()
    try:
        if what == "place":
            print(place_order(db, key, {"item": item, "quantity": int(quantity)})["id"])
        elif what == "begin":
            begin_and_commit(db, key)
        else:
            begin_in_autocommit(db, key)
    except psycopg.Error as error:
        print(error.sqlstate)


if __name__ == "__main__":
    main(*sys.argv[1:])
