#!/usr/bin/python3
"""The batch that goes on with what was left behind: by workers that died, and by those that released it for a while.

Any number of these may run at once, each claim is handed to one of them only. What is not due or is parked is passed over.
"""
import time

from shop import LEASE, SCOPE, Claim, connect, process


def take_over(db):
    """One claim at a time: of a batch, the leases would all run while the first is worked on."""
    with db.transaction():
        found = db.execute("SELECT * FROM idempotent_resume(%s, max_keys => 1, scope => %s)", [LEASE, SCOPE]).fetchone()
    return found and Claim(found.key, found.attempt, found.checkpoint, found.state)


if __name__ == "__main__":
    db = connect()
    while True:
        claim = take_over(db)
        if claim:
            process(db, claim)
        else:
            time.sleep(0.1)
