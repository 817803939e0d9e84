"""The work of an order: charge the card, then send the e-mail.

Two calls to the outside world, so the work spans several transactions and runs under a lease. Whoever holds the claim
on an order's key calls process(); it goes on at the last checkpoint, whether this is the first attempt or the fifth.
"""
import http.client
import json
import os
import sys
from typing import NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

SCOPE = "shop orders"

# The lease must outlast the longest call and the transaction after it: a checkpoint renews it, so one call, not all.
CALL_TIMEOUT = 0.4      # seconds
LEASE = "2 seconds"


class Claim(NamedTuple):
    """An order's key under our lease: the number of our attempt, and where the last one got to."""
    key: str
    attempt: int
    checkpoint: str | None
    state: dict | None


class PassingTrouble(Exception):
    """No answer, or one that says: try later. Whether the other side has acted cannot be known."""


def connect():
    # The server is told by PGHOST, PGDATABASE and so on. In autocommit a transaction is what stands in
    # "with db.transaction()", and none is open during a call to the outside.
    return psycopg.connect(autocommit=True, row_factory=namedtuple_row)


def call(path, idempotency_key, **body):
    """POST to the outside service, once."""
    service = http.client.HTTPConnection("127.0.0.1", int(os.environ["SERVICE_PORT"]), timeout=CALL_TIMEOUT)
    try:
        service.request("POST", path, json.dumps(body), {"Idempotency-Key": idempotency_key})
        answer = service.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as trouble:
        raise PassingTrouble(f"{path}: {trouble!r}") from trouble
    finally:
        service.close()
    if answer.status >= 500 or answer.status in (409, 429):
        raise PassingTrouble(f"{path}: {answer.status}")
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text}")
    return json.loads(text)


def process(db, claim):
    """One attempt at the work of an order."""
    try:
        try:
            run_phases(db, claim)
        except PassingTrouble as trouble:
            give_back(db, claim, trouble)
    except psycopg.Error as error:
        # Our lease had ended and another worker has gone on. What we did since was refused, all of it.
        if error.sqlstate != "IK410":
            raise
        log(claim, "overtaken")


def run_phases(db, claim):
    order = db.execute("SELECT id, email, amount FROM orders WHERE id = %s", [claim.key]).fetchone()
    checkpoint, state = claim.checkpoint, claim.state

    if checkpoint is None:
        # The key is derived from ours and the same on every attempt: the service knows a repetition by it.
        charge = call("/charges", f"order-{order.id}-charge", order=order.id, amount=order.amount)
        state = {"charge": charge["id"]}
        with db.transaction():
            db.execute("UPDATE orders SET status = 'charged', charge = %s WHERE id = %s", [charge["id"], order.id])
            db.execute("INSERT INTO bookings (order_id, amount) VALUES (%s, %s)", [order.id, order.amount])
            db.execute("SELECT idempotent_checkpoint(%s, %s, %s, 'charged', %s)",
                       [SCOPE, claim.key, claim.attempt, json.dumps(state)])
        checkpoint = "charged"
        log(claim, "charged")

    if checkpoint == "charged":
        call("/emails", f"order-{order.id}-email", order=order.id, to=order.email)
        with db.transaction():
            db.execute("UPDATE orders SET status = 'done' WHERE id = %s", [order.id])
            db.execute("SELECT idempotent_finish(%s, %s, response => %s, status => 200, attempt => %s)",
                       [SCOPE, claim.key, json.dumps({"order": order.id, **state}), claim.attempt])
        log(claim, "done")


def give_back(db, claim, trouble):
    """Failed for a passing reason: say why, and when to try again. Shorter times than the usual minutes, for the show."""
    with db.transaction():
        db.execute("""SELECT idempotent_release(%(scope)s, %(key)s, attempt => %(attempt)s, error => %(error)s,
                             retry_after => idempotent_backoff(%(attempt)s, '0.1 s', cap => '2 s', jitter => 0.5))""",
                   {"scope": SCOPE, "key": claim.key, "attempt": claim.attempt, "error": str(trouble)})
    log(claim, f"given back: {trouble}")


def log(claim, what):
    print(f"[{os.getpid()}] order {claim.key}, attempt {claim.attempt}: {what}", file=sys.stderr, flush=True)
