#!/usr/bin/python3
"""Accepts new orders, one after the other, and works on each. Killed at any point, it does no harm."""
import time

from shop import Claim, begin, connect, process


def accept(db):
    """Claim a new order. Order and claim are one transaction, committed before anything outside is called."""
    with db.transaction():
        order = db.execute("SELECT id FROM orders WHERE status = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED").fetchone()
        if order is None:
            return None
        begun = begin(db, order.id)
    return Claim(str(order.id), begun.attempt, begun.checkpoint, begun.state)


if __name__ == "__main__":
    db = connect()
    while True:
        claim = accept(db)
        if claim:
            process(db, claim)
        else:
            time.sleep(0.1)
