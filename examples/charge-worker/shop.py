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
MINUTE = os.environ.get("MINUTE", "0.1 s")      # scaled: the next try is after 1, 2, 4, 8, 10, 10 … of these
TRIES = 5               # from this attempt on, a call without an answer is not made again: a person must look

# The lease must outlast the longest call and the transaction after it: a checkpoint renews it, so one call, not all.
CALL_TIMEOUT = 1.0      # seconds
LEASE = "3 seconds"


class Claim(NamedTuple):
    """An order's key under our lease: the number of our attempt, and where the last one got to."""
    key: str
    attempt: int
    checkpoint: str | None
    state: dict | None


class TryLater(Exception):
    """The other side has done nothing, and says so."""


class NoAnswer(Exception):
    """Whether the other side has acted is not known."""


def connect():
    # The server is told by PGHOST, PGDATABASE and so on. In autocommit a transaction is what stands in
    # "with db.transaction()", and none is open during a call to the outside.
    return psycopg.connect(autocommit=True, row_factory=namedtuple_row)


def begin(db, order_id):
    """Accept an order, or go on with it if it is due: for a new order and for a client that asks again alike.

    Raises IK409 while another attempt has it or its next try is not due, and IK423 once it is parked. Order and claim are
    one transaction, to be committed before process() calls anything outside.
    """
    order = db.execute("SELECT id, email, amount FROM orders WHERE id = %s FOR UPDATE", [order_id]).fetchone()
    begun = db.execute("SELECT * FROM idempotent_begin(%s, %s, request => %s, lease => %s)",
                       [SCOPE, str(order_id), json.dumps(order._asdict()), LEASE]).fetchone()
    db.execute("UPDATE orders SET status = 'accepted' WHERE id = %s AND status = 'new'", [order_id])
    return begun


def call(db, claim, path, step, **body):
    """POST to the outside service, once."""
    # Derived from our key and the step, and the same on every attempt: the service knows a repetition by it.
    key = db.execute("SELECT idempotent_derive(%s, %s, %s)", [SCOPE, claim.key, step]).fetchone()[0]
    service = http.client.HTTPConnection("127.0.0.1", int(os.environ["SERVICE_PORT"]), timeout=CALL_TIMEOUT)
    try:
        service.request("POST", path, json.dumps(body), {"Idempotency-Key": key})
        answer = service.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as trouble:
        raise NoAnswer(f"{path}: {trouble!r}") from trouble
    finally:
        service.close()
    if answer.status in (409, 429, 503):
        raise TryLater(f"{path}: {answer.status}")
    if answer.status >= 500:
        raise NoAnswer(f"{path}: {answer.status}")
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text}")
    return json.loads(text)


def process(db, claim):
    """One attempt at the work of an order. Returns the HTTP status for a client that waits for it."""
    try:
        try:
            return run_phases(db, claim)
        except TryLater as trouble:
            return release(db, claim, trouble)
        except NoAnswer as trouble:
            return release(db, claim, trouble) if claim.attempt < TRIES else park(db, claim, trouble)
    except psycopg.Error as error:
        # Our lease had ended and another worker has gone on. What we did since was refused, all of it.
        if error.sqlstate != "IK410":
            raise
        log(claim.key, "overtaken", claim.attempt)
        return 409


def run_phases(db, claim):
    order = db.execute("SELECT id, email, amount FROM orders WHERE id = %s", [claim.key]).fetchone()
    checkpoint, state = claim.checkpoint, claim.state

    if checkpoint is None:
        charge = call(db, claim, "/charges", "charge", order=order.id, amount=order.amount)
        state = {"charge": charge["id"]}
        with db.transaction():
            db.execute("UPDATE orders SET status = 'charged', charge = %s WHERE id = %s", [charge["id"], order.id])
            db.execute("INSERT INTO bookings (order_id, amount) VALUES (%s, %s)", [order.id, order.amount])
            db.execute("SELECT idempotent_checkpoint(%s, %s, %s, 'charged', %s)",
                       [SCOPE, claim.key, claim.attempt, json.dumps(state)])
        checkpoint = "charged"
        log(claim.key, "charged", claim.attempt)

    if checkpoint == "charged":
        call(db, claim, "/emails", "email", order=order.id, to=order.email)
        with db.transaction():
            db.execute("UPDATE orders SET status = 'done' WHERE id = %s", [order.id])
            db.execute("SELECT idempotent_finish(%s, %s, response => %s, status => 200, attempt => %s)",
                       [SCOPE, claim.key, json.dumps({"order": order.id, **state}), claim.attempt])
        log(claim.key, "done", claim.attempt)
    return 200


def release(db, claim, trouble):
    """Not now: say why, and when to try again. Before that nobody gets the claim, and so nobody calls the service.

    After idempotency.max_attempts of them the claim is parked all the same.
    """
    db.execute("""SELECT idempotent_release(%(scope)s, %(key)s, attempt => %(attempt)s, error => %(error)s,
                         retry_after => idempotent_backoff(%(attempt)s, %(minute)s, cap => 10 * %(minute)s::interval, jitter => 0.5))""",
               {"scope": SCOPE, "key": claim.key, "attempt": claim.attempt, "error": str(trouble), "minute": MINUTE})
    log(claim.key, f"released: {trouble}", claim.attempt)
    return 409


def park(db, claim, trouble):
    """Tried often enough, and nobody knows what the service has done. A person must look; until then nobody tries again."""
    db.execute("SELECT idempotent_park(%s, %s, %s, error => %s)", [SCOPE, claim.key, claim.attempt, str(trouble)])
    log(claim.key, f"parked: {trouble}", claim.attempt)
    return 423


def log(key, what, attempt="-"):
    print(f"[{os.getpid()}] order {key}, attempt {attempt}: {what}", file=sys.stderr, flush=True)
