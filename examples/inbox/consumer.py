#!/usr/bin/python3
"""Takes messages from the inbox and does their work once, however often they are delivered.

Delivery, key and work are one transaction. SKIP LOCKED gives each delivery to one consumer; the key tells that another
delivery of the same message has been worked on, or is being worked on right now. Run as many as you like.

    consumer.py [--until-empty]
"""
import json
import sys
import time

import psycopg
from psycopg.rows import namedtuple_row

SCOPE = "warehouse inbox"   # whose message ids they are: another producer may use the same
RETENTION = "14 days"       # longer than the broker may deliver a message again
MAX_FAILURES = 5


def handle(db, body):
    """The work of a message. What it returns is kept with the key."""
    row = db.execute("UPDATE stock SET pieces = pieces + %s WHERE item = %s RETURNING pieces",
                     [body["pieces"], body["item"]]).fetchone()
    if row is None:
        raise LookupError(f"no such item: {body['item']}")
    return {"pieces": row.pieces}


def consume(db):
    """Deal with one delivery; false if none is due."""
    with db.transaction():
        delivery = db.execute("""SELECT id, message_id, body, failures FROM inbox WHERE due_at <= now()
                                 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED""").fetchone()
        if delivery is None:
            return False
        # try_begin, since a consumer has better things to do than to wait for the other delivery's consumer.
        attempt = db.execute("SELECT * FROM idempotent_try_begin(%s, %s, request => %s, retention => %s)",
                             [SCOPE, delivery.message_id, json.dumps(delivery.body), RETENTION]).fetchone()
        if attempt.outcome == "started":
            work(db, delivery)
        elif attempt.outcome == "in_progress":
            postpone(db, delivery, "1 second")
        elif attempt.outcome == "replayed":
            drop(db, delivery)
        else:                                   # mismatch: one message_id, two messages
            bury(db, delivery, attempt.outcome)
        return True


def work(db, delivery):
    try:
        with db.transaction():                  # a savepoint: the attempt outlives what fails in here
            result = handle(db, delivery.body)
    except (psycopg.Error, LookupError) as error:
        if getattr(error, "sqlstate", None) in ("40001", "40P01"):
            raise                               # another delivery is in our way: the transaction as a whole, again
        db.execute("SELECT idempotent_release(%s, %s)", [SCOPE, delivery.message_id])
        if delivery.failures + 1 >= MAX_FAILURES:
            bury(db, delivery, str(error))
        else:
            failed = delivery.failures + 1
            wait = db.execute("SELECT idempotent_backoff(%s, '1 s', jitter => 0.5)::text AS wait", [failed]).fetchone()
            postpone(db, delivery, wait.wait, failed)
    else:
        db.execute("SELECT idempotent_finish(%s, %s, %s)", [SCOPE, delivery.message_id, json.dumps(result)])
        drop(db, delivery)


def drop(db, delivery):
    db.execute("DELETE FROM inbox WHERE id = %s", [delivery.id])


def postpone(db, delivery, wait, failures=None):
    db.execute("""UPDATE inbox SET due_at = clock_timestamp() + %s::interval, failures = coalesce(%s, failures)
                  WHERE id = %s""", [wait, failures, delivery.id])


def bury(db, delivery, reason):
    db.execute("INSERT INTO dead_letters (message_id, body, reason) VALUES (%s, %s, %s)",
               [delivery.message_id, json.dumps(delivery.body), reason])
    drop(db, delivery)


def main():
    db = psycopg.connect(autocommit=True, row_factory=namedtuple_row)
    while True:
        try:
            found = consume(db)
        except psycopg.errors.OperationalError as error:
            if error.sqlstate not in ("40001", "40P01"):
                raise
            continue
        if not found:
            if "--until-empty" in sys.argv and not db.execute("SELECT 1 FROM inbox LIMIT 1").fetchone():
                return
            time.sleep(0.05)


if __name__ == "__main__":
    main()
