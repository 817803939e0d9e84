#!/usr/bin/python3
"""Accepts new orders, one after the other, and works on each. Killed at any point, it does no harm."""
import json
import time

from shop import LEASE, SCOPE, Claim, connect, process


def accept(db):
    """Claim a new order. Order and claim are one transaction, committed before anything outside is called."""
    with db.transaction():
        order = db.execute("""UPDATE orders SET status = 'accepted'
                              WHERE id = (SELECT id FROM orders WHERE status = 'new'
                                          ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
                              RETURNING id, email, amount""").fetchone()
        if order is None:
            return None
        key = str(order.id)
        begun = db.execute("SELECT * FROM idempotent_begin(%s, %s, request => %s, lease => %s)",
                           [SCOPE, key, json.dumps(order._asdict()), LEASE]).fetchone()
        return Claim(key, begun.attempt, begun.checkpoint, begun.state)


if __name__ == "__main__":
    db = connect()
    while True:
        claim = accept(db)
        if claim:
            process(db, claim)
        else:
            time.sleep(0.1)
