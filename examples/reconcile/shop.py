#!/usr/bin/python3
"""A worker of the shop: takes its clients' requests and charges their cards; or, with --resume, goes on with what was left
behind.

Any number of each may run, and each may be killed at any point. Their server is told by PGHOST and so on, the provider
by PROVIDER_PORT.
"""
import http.client
import json
import os
import sys
import time

import psycopg
from psycopg.rows import namedtuple_row

SCOPE = "shop orders"
MINUTE = "0.1 s"        # scaled: clients and workers try again after 1, 2, 4 and 8 of these
TRIES = 5               # calls without an answer until a person, or the batch, must settle it

# A call of idempotent_resume reads every claim there is, also those that are parked. So it fetches several.
BATCH = 4
PAUSE = 0.05            # seconds, after fewer than that

# The leases of a batch begin together. They must outlast the longest call of each of them, and the transaction after it.
CALL_TIMEOUT = 1.0      # seconds
LEASE = "5 seconds"


class NoAnswer(Exception):
    """Whether the provider has acted is not known."""


class Busy(Exception):
    """The provider says that it has done nothing, and to try later."""


class Provider:
    """One connection, opened again after each failure."""

    def __init__(self):
        self.http = http.client.HTTPConnection("127.0.0.1", int(os.environ["PROVIDER_PORT"]), timeout=CALL_TIMEOUT)

    def charge(self, key, order):
        """POST once. Returns status and answer: 200, or 402 for a card that is declined."""
        try:
            self.http.request("POST", "/charges", json.dumps(order), {"Idempotency-Key": key})
            answer = self.http.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as trouble:
            self.http.close()
            raise NoAnswer(repr(trouble)) from trouble
        if answer.status == 503:
            raise Busy("503")
        return answer.status, json.loads(text)


def connect():
    # In autocommit a transaction is what stands in "with db.transaction()", and none is open during a call.
    return psycopg.connect(autocommit=True, row_factory=namedtuple_row)


def serve(db, provider):
    """The next request of a client that is due; None if there is none."""
    client = next_request(db)
    if client:
        status, answer = place(db, provider, client.order_id, client.amount)
        db.execute("UPDATE clients SET status = %s, answer = %s WHERE order_id = %s",
                   [status, json.dumps(answer) if status in (200, 402) else None, client.order_id])
    return client


def next_request(db):
    """The client has sent it and looks at its watch: if we die now, it asks again."""
    return db.execute("""UPDATE clients SET asked = asked + 1,
                                ask_at = clock_timestamp() + idempotent_backoff(asked + 1, %s)
                         WHERE order_id = (SELECT order_id FROM clients
                                           WHERE answer IS NULL AND asked < 5 AND ask_at <= clock_timestamp()
                                           ORDER BY ask_at LIMIT 1 FOR UPDATE SKIP LOCKED)
                         RETURNING order_id, amount""", [MINUTE]).fetchone()


def place(db, provider, order_id, amount):
    """POST /orders: status and answer for the client. Order and claim are committed before anybody is called."""
    order = {"order": order_id, "amount": amount}
    with db.transaction():
        begun = db.execute("""SELECT *, idempotent_derive(%(scope)s, %(key)s, 'charge') AS charge_key
                              FROM idempotent_try_begin(%(scope)s, %(key)s, request => %(order)s, lease => %(lease)s)""",
                           {"scope": SCOPE, "key": str(order_id), "order": json.dumps(order), "lease": LEASE}).fetchone()
        if begun.outcome == "started":
            db.execute("INSERT INTO orders (id, amount) VALUES (%s, %s) ON CONFLICT DO NOTHING", [order_id, amount])
    if begun.outcome in ("started", "recovered"):
        return work(db, provider, order, begun.charge_key, begun.attempt, begun.state)
    if begun.outcome == "replayed":
        return begun.status, begun.response
    return {"in_progress": 409, "parked": 423}[begun.outcome], None


def resume(db, provider):
    """Go on with claims whose workers have died or have released them. Returns how many were due."""
    claims = db.execute("""SELECT *, idempotent_derive(scope, key, 'charge') AS charge_key
                           FROM idempotent_resume(%s, max_keys => %s, scope => %s)""", [LEASE, BATCH, SCOPE]).fetchall()
    for claim in claims:
        work(db, provider, claim.request, claim.charge_key, claim.attempt, claim.state)
    return len(claims)


def work(db, provider, order, charge_key, attempt, state):
    """One attempt at an order. Returns status and answer for a client."""
    claim = {"scope": SCOPE, "key": str(order["order"]), "attempt": attempt}
    try:
        try:
            return book(db, claim, order, *provider.charge(charge_key, order))
        except Busy as trouble:
            give_back(db, claim, state, trouble)
        except NoAnswer as trouble:
            unanswered = (state or {}).get("unanswered", 0) + 1
            if unanswered >= TRIES:
                park(db, claim, trouble)
                return 423, None
            give_back(db, claim, {"unanswered": unanswered}, trouble)
    except psycopg.Error as error:
        # Our lease had ended and another worker has gone on. What we tried to write was refused, all of it.
        if error.sqlstate != "IK410":
            raise
    return 409, None


def book(db, claim, order, status, answer):
    """The provider has answered: the ledger, the order and the key in one transaction."""
    response = {"order": order["order"], **answer}
    with db.pipeline(), db.transaction():       # one round trip
        if status == 200:
            db.execute("INSERT INTO ledger VALUES (%s, %s, %s, 'worker')", [order["order"], order["amount"], answer["charge"]])
        db.execute("UPDATE orders SET status = %s WHERE id = %s", ["paid" if status == 200 else "refused", order["order"]])
        db.execute("SELECT idempotent_finish(%(scope)s, %(key)s, %(response)s, status => %(status)s, attempt => %(attempt)s)",
                   {**claim, "response": json.dumps(response), "status": status})
    return status, response


def give_back(db, claim, state, trouble):
    """Try again after 1, 2, 4, 8 minutes; nobody does so before, whatever a client's watch says."""
    with db.pipeline(), db.transaction():
        db.execute("SELECT idempotent_checkpoint(%(scope)s, %(key)s, %(attempt)s, 'asked', %(state)s)",
                   {**claim, "state": json.dumps(state)})
        db.execute("""SELECT idempotent_release(%(scope)s, %(key)s, %(attempt)s, error => %(error)s,
                             retry_after => idempotent_backoff(%(attempt)s, %(minute)s))""",
                   {**claim, "error": str(trouble), "minute": MINUTE})


def park(db, claim, trouble):
    """Asked often enough. From now on nobody asks, until it is settled."""
    db.execute("SELECT idempotent_park(%(scope)s, %(key)s, %(attempt)s, %(error)s)", {**claim, "error": str(trouble)})


def serve_clients():
    db, provider = connect(), Provider()
    while True:
        if not serve(db, provider):
            time.sleep(0.02)


def resume_claims():
    """Beside the others, not when they have nothing else to do: on a busy day claims would pile up."""
    db, provider = connect(), Provider()
    while True:
        if resume(db, provider) < BATCH:
            time.sleep(PAUSE)


if __name__ == "__main__":
    resume_claims() if sys.argv[1:] == ["--resume"] else serve_clients()
