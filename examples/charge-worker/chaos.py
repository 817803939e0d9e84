#!/usr/bin/python3
"""The show: orders, clients, workers, the batch and the outside service, with all but that one killed and frozen at random.

    chaos.py [--orders N] [--seconds N] [--forgetful]

Needs a database prepared by schema.sql, told by PGHOST, PGDATABASE and so on. What is parked in the end is tried again by a
person, once the service has been repaired. Ends with the count of both sides; exits with 0 if every order was charged,
booked and e-mailed once.
"""
import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

import psycopg

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ["worker.py"] * 3 + ["reconcile.py"] * 2 + ["client.py"] * 2
FROZEN = 4.5            # seconds: longer than the lease
PATIENCE = 60           # seconds after that until all must be done or parked


def run(program, *args, **options):
    """In a session of its own, as a service has; Linux shares a busy processor out among sessions."""
    return subprocess.Popen(["/usr/bin/python3", os.path.join(HERE, program), *args], text=True, start_new_session=True, **options)


class Crew:
    """Workers, batches and clients. One that ended, however it did, is started again, as a service manager would."""

    def __init__(self, log):
        self.log, self.killed, self.frozen, self.crashed = log, 0, 0, 0
        self.members = [self.start(program) for program in PROGRAMS]
        self.thaw_at = {}

    def start(self, program):
        member = run(program, stderr=self.log, env={**os.environ, "PGUSER": "shop"})
        member.program = program
        return member

    def tend(self):
        for member, at in list(self.thaw_at.items()):
            if time.monotonic() > at:
                member.send_signal(signal.SIGCONT)
                del self.thaw_at[member]
        for i, member in enumerate(self.members):
            if member.poll() is not None:
                self.crashed += member.returncode != -signal.SIGKILL
                self.members[i] = self.start(member.program)

    def strike(self):
        """A crash, or a pause that outlasts the lease: a stopped virtual machine, a long garbage collection."""
        member = random.choice([m for m in self.members if m not in self.thaw_at])
        if random.random() < 0.4 and len(self.thaw_at) < 2:
            member.send_signal(signal.SIGSTOP)
            self.thaw_at[member] = time.monotonic() + FROZEN
            self.frozen += 1
        else:
            member.kill()
            member.wait()
            self.killed += 1

    def dismiss(self):
        for member in self.members:
            member.kill()
            member.wait()


def repair_and_retry(db, service):
    """The service works again. Whoever is on call looks at what is parked, and tries each order once more.

    Returns how many orders were parked.
    """
    support = lambda *orders: subprocess.run(["/usr/bin/python3", os.path.join(HERE, "support.py"), *orders], text=True,
                                             stdout=subprocess.PIPE, env={**os.environ, "PGUSER": "support"}).stdout
    service.send_signal(signal.SIGUSR1)
    parked = first = [line.split("\t") for line in support().splitlines()]
    while parked:
        for order, attempts, error in parked:
            print(f"parked: order {order} after attempt {attempts}, {error}")
        print(support(*[order for order, *_ in parked]))
        parked = [line.split("\t") for line in support().splitlines()]     # none, unless a call took too long
    return len(first)


def show(db, ledger, log_text, crew):
    one = lambda query: db.execute(query).fetchone()[0]
    theirs = lambda query, *args: ledger.execute(query, args).fetchone()[0]
    orders = one("SELECT count(*) FROM orders")

    print(f"workers killed: {crew.killed}, frozen: {crew.frozen}; attempts overtaken: {log_text.count('overtaken')}")
    for sqlstate in "IK409", "IK423":
        print(f"clients refused with {sqlstate}: {log_text.count('refused with ' + sqlstate)}")
    for path in "/charges", "/emails":
        kinds = dict(ledger.execute("SELECT kind, count(*) FROM calls WHERE path = ? GROUP BY kind", [path]))
        print(f"{path}: " + ", ".join(f"{kind}: {n}" for kind, n in sorted(kinds.items())))
    print()

    counts = {
        "orders": orders,
        "finished keys": one("SELECT count(*) FROM idempotency_keys"),
        "claims left": one("SELECT count(*) FROM idempotency_claims"),
        "orders booked once": one("""SELECT count(*) FROM orders o
            WHERE (SELECT array_agg(amount) FROM bookings WHERE order_id = o.id) = ARRAY[o.amount]"""),
        "charges in the service's ledger": theirs("SELECT count(*) FROM acts WHERE path = '/charges'"),
        "orders charged once": theirs("""SELECT count(*) FROM (SELECT 1 FROM acts WHERE path = '/charges'
            GROUP BY order_id HAVING count(*) = 1)"""),
        "e-mails in the service's ledger": theirs("SELECT count(*) FROM acts WHERE path = '/emails'"),
        "orders e-mailed once": theirs("""SELECT count(*) FROM (SELECT 1 FROM acts WHERE path = '/emails'
            GROUP BY order_id HAVING count(*) = 1)"""),
        "cents ordered": one("SELECT sum(amount) FROM orders"),
        "cents charged": theirs("SELECT coalesce(sum(amount), 0) FROM acts WHERE path = '/charges'"),
    }
    for what, n in counts.items():
        print(f"{what}: {n}")
    once = all(n == orders for what, n in counts.items() if what != "claims left" and "cents" not in what)
    return once and counts["claims left"] == 0 and counts["cents ordered"] == counts["cents charged"]


def in_hand(db):
    """Orders that are done or parked."""
    return db.execute("""SELECT (SELECT count(*) FROM orders WHERE status = 'done')
                              + (SELECT count(*) FROM idempotency_stalled WHERE parked)""").fetchone()[0]


def play(db, crew, options):
    """Until each order is done or parked."""
    start, strike_at, ordered = time.monotonic(), time.monotonic() + 1, 0
    while in_hand(db) < options.orders:
        now = time.monotonic()
        # Orders come in as long as workers are killed, so that these have something to do.
        share = min(1, (now - start) / options.seconds) if options.seconds else 1
        db.execute("INSERT INTO orders (email, amount) SELECT 'customer' || n || '@example.org', 100 + n"
                   " FROM generate_series(%s::int, %s::int) n", [ordered + 1, round(share * options.orders)])
        ordered = round(share * options.orders)
        if now > start + PATIENCE + options.seconds:
            print(open(crew.log.name).read()[-4000:], "given up: not all orders are done or parked", sep="\n")
            break
        if strike_at < now < start + options.seconds:
            crew.strike()
            strike_at = now + random.uniform(0.1, 0.5)
        crew.tend()
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10, help="how long orders come in and workers are killed")
    parser.add_argument("--forgetful", action="store_true", help="the outside service ignores the keys")
    options = parser.parse_args()

    # What was started is in sessions of its own, and must be ended on this way out too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    db = psycopg.connect(autocommit=True)
    with tempfile.TemporaryDirectory() as folder:
        path, log_path = folder + "/ledger", folder + "/log"
        service = run("service.py", path, *["--forgetful"] * options.forgetful, stdout=subprocess.PIPE)
        os.environ["SERVICE_PORT"] = service.stdout.readline().strip()
        crew = Crew(open(log_path, "a"))
        try:
            play(db, crew, options)
            crew.dismiss()
            parked = repair_and_retry(db, service)
        finally:
            crew.dismiss()
            service.kill()
            service.wait()
        log_text = open(log_path).read()
        if crew.crashed:
            print(log_text[-4000:], f"{crew.crashed} workers ended by themselves, which they never should", sep="\n")
        print(f"orders parked: {parked}")
        once = show(db, sqlite3.connect(path), log_text, crew)
    sys.exit(0 if once and not crew.crashed else 1)


if __name__ == "__main__":
    main()
