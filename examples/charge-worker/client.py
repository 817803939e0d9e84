#!/usr/bin/python3
"""A client that has no answer yet and asks for its order again, without waiting: client.py ORDER

Prints the HTTP status that it gets. Without ORDER it asks on and on, each time for some order that is not done.
"""
import sys
import time

import psycopg

from shop import Claim, begin, connect, log, process


def ask(db, order_id):
    """POST /orders once more. Returns the HTTP status."""
    try:
        with db.transaction():
            begun = begin(db, order_id)
    except psycopg.Error as error:
        # Somebody is at it, or the next try is not due: 409. Parked: 423. Either way nothing outside is called.
        if error.sqlstate not in ("IK409", "IK423"):
            raise
        log(order_id, f"refused with {error.sqlstate}")
        return int(error.sqlstate[2:])
    if begun.replayed:
        return begun.status
    return process(db, Claim(str(order_id), begun.attempt, begun.checkpoint, begun.state))


if __name__ == "__main__":
    db = connect()
    if len(sys.argv) > 1:
        print(ask(db, int(sys.argv[1])))
        sys.exit()
    while True:
        order = db.execute("SELECT id FROM orders WHERE status <> 'done' ORDER BY random() LIMIT 1").fetchone()
        if order:
            ask(db, order.id)
        time.sleep(0.05)
