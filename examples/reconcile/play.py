#!/usr/bin/python3
"""A day of the shop, and its evening: clients, workers that are killed, the provider, its settlement file, the batch.

    play.py [--orders N] [--seed N] [--no-mutants]

Needs a database prepared by schema.sql and batch.sql, told by PGHOST, PGDATABASE and so on, and the right to make others.
If the server has pg_cron loaded, that runs the batch. Prints what was seen to hold; exits with 0 if all of it was.
"""
import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request

import psycopg
from psycopg.rows import namedtuple_row

from check import CHECKS, check

HERE = os.path.dirname(os.path.abspath(__file__))
SHOP = os.environ.get("PGDATABASE", "shop")
WORKERS = 6
RATE = 250              # orders a second come in, or as fast as the workers can
STEPS = "open_here", "open_refused", "refused_here", "ledger", "lines", "amounts", "list"
STATEMENT = "settlement evening.jsonl"
failures = 0


def say(why, what):
    global failures
    failures += bool(why)
    print(f"FAILED  {what}: {why}" if why else f"ok      {what}", flush=True)


def connect(database=SHOP, **options):
    return psycopg.connect(dbname=database, autocommit=True, row_factory=namedtuple_row, **options)


def run(program, *args, **options):
    return subprocess.Popen(["/usr/bin/python3", os.path.join(HERE, program), *args], text=True, **options)


class Crew:
    """Workers. One that ended, however it did, is started again, as a service manager would."""

    def __init__(self, log):
        self.log, self.killed, self.crashed = log, 0, 0
        self.members = [self.start() for _ in range(WORKERS)]

    def start(self):
        return run("shop.py", stderr=self.log, env={**os.environ, "PGUSER": "shop"})

    def strike(self):
        i = random.randrange(WORKERS)
        self.crashed += self.members[i].poll() is not None
        self.members[i].kill()
        self.members[i].wait()
        self.members[i] = self.start()
        self.killed += 1

    def dismiss(self):
        for member in self.members:
            self.crashed += member.poll() is not None
            member.kill()
            member.wait()


def is_over(db):
    """Every client has its answer or has given up, and every claim is settled or parked."""
    return db.execute("""SELECT NOT EXISTS (SELECT FROM clients WHERE answer IS NULL AND asked < 5)
                            AND NOT EXISTS (SELECT FROM idempotency_claims WHERE parked_at IS NULL)""").fetchone()[0]


def day(orders):
    """Until everything is done that retries can do. Returns when it began and ended."""
    with tempfile.TemporaryFile("w+") as log, connect() as db:
        began = db.execute("SELECT clock_timestamp()").fetchone()[0]
        db.execute("""INSERT INTO clients (order_id, amount, ask_at)
                      SELECT n, 1000 + n, clock_timestamp() + n / %s::float * interval '1 second'
                      FROM generate_series(1, %s) n""", [RATE, orders])
        crew, deadline = Crew(log), time.monotonic() + 60 + orders / 20
        try:
            while not is_over(db) and time.monotonic() < deadline:
                time.sleep(random.uniform(0.1, 0.6))
                if not db.execute("SELECT count(*) = 0 FROM clients WHERE asked = 0").fetchone()[0]:
                    crew.strike()
        finally:
            crew.dismiss()
        log.seek(0)
        say(None if is_over(db) else "it is not over", "the day ends with nothing left that retries could do")
        say(log.read()[-3000:] if crew.crashed else None, "no worker ended but by being killed")
        say(None if crew.killed else "none", f"workers were killed: {crew.killed}")
        return began, db.execute("SELECT clock_timestamp()").fetchone()[0]


def statement_arrives(database, window, lines):
    with connect(database) as db, db.transaction():
        db.execute("INSERT INTO statements VALUES (%s, %s, %s)", [STATEMENT, *window])
        with db.cursor().copy("COPY statement_lines (file, n, line) FROM STDIN") as copy:
            for n, line in enumerate(lines, 1):
                copy.write_row((STATEMENT, n, line))


def has_cron():
    with connect("postgres") as db:
        return "pg_cron" in db.execute("SHOW shared_preload_libraries").fetchone()[0]


def schedule_batch():
    """pg_cron knows seconds from 1.5 on; before that, it is once a minute, on the minute."""
    with connect("postgres") as db:
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        db.execute("""SELECT cron.schedule_in_database('settle', CASE
                          WHEN string_to_array(substring(extversion, '^\\d+\\.\\d+'), '.')::integer[] >= '{1,5}'
                          THEN '1 seconds' ELSE '* * * * *' END, 'CALL settle_all()', %s, 'clerk')
                      FROM pg_extension WHERE extname = 'pg_cron'""", [SHOP])


def wait_for_batch():
    deadline = time.monotonic() + 300
    with connect() as db:
        while not db.execute("SELECT bool_and(settled_at IS NOT NULL) FROM statements").fetchone()[0]:
            if time.monotonic() > deadline:
                return "the batch has not run"
            time.sleep(0.2)
    with connect("postgres") as db:
        db.execute("SELECT cron.unschedule(jobid) FROM cron.job WHERE jobname = 'settle'")


def settle(database, skip=""):
    with connect(database, user="clerk", options=f"-c shop.skip={skip}") as db:
        db.execute("CALL settle_all()")


def mutants(window, lines, ledger):
    """Each step of the batch is taken out in turn, on a copy of the evening: the checks must find out."""
    for step in STEPS:
        with connect("postgres") as db:
            db.execute(f"CREATE DATABASE mutant TEMPLATE evening")
            statement_arrives("mutant", window, lines)
            settle("mutant", step)
            with connect("mutant") as mutant:
                found = check(mutant, ledger)
            db.execute("DROP DATABASE mutant")
        say(None if found else "all checks pass", f"a batch without {step} is found out ({len(found)} of {len(CHECKS)} checks)")


def show(ledger):
    print()
    for fault, n in sqlite3.connect(ledger).execute("SELECT fault, count(*) FROM faults GROUP BY 1 ORDER BY 1"):
        print(f"injected, {fault}: {n}")
    with connect() as db:
        for what, n in db.execute("SELECT what, count(*) FROM idempotency_corrections GROUP BY 1 ORDER BY 1"):
            print(f"{what} by the batch: {n}")
        for verdict, n in db.execute("SELECT verdict, count(*) FROM for_a_person GROUP BY 1 ORDER BY 1"):
            print(f"for a person, {verdict}: {n}")
    print()


def evening(options, ledger, port, cron):
    """The settlement file comes; the batch settles and lists; what holds afterwards is checked."""
    window = day(options.orders)
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/settlement").read().decode().splitlines()
    with connect("postgres") as db:
        db.execute(f"CREATE DATABASE evening TEMPLATE {SHOP}")
    statement_arrives(SHOP, window, lines)
    if not cron:
        settle(SHOP)
    if options.mutants:
        mutants(window, lines, ledger)
    if cron:
        say(wait_for_batch(), "pg_cron has run the batch")
    show(ledger)
    with connect() as db:
        found = check(db, ledger)
    for name in CHECKS:
        say(found.get(name), name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the provider's faults")
    parser.add_argument("--no-mutants", dest="mutants", action="store_false")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ledger = folder + "/ledger"
        provider = run("provider.py", ledger, "--seed", str(options.seed), stdout=subprocess.PIPE)
        port = os.environ["PROVIDER_PORT"] = provider.stdout.readline().strip()
        cron = has_cron()
        try:
            if cron:
                schedule_batch()
            evening(options, ledger, port, cron)
        finally:
            provider.kill()
            provider.wait()
    print(f"orders: {options.orders}, seed: {options.seed}, seconds: {time.monotonic() - started:.0f}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
