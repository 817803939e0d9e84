#!/usr/bin/python3
"""A day of the shop, and its evening: clients, workers that are killed, the provider, its settlement file, the batch.

    play.py [--orders N] [--seed N] [--no-mutants]

Needs a database prepared by schema.sql and batch.sql, told by PGHOST, PGDATABASE and so on, and the right to make others.
If the server has pg_cron loaded, that runs the batch. Prints what was seen to hold; exits with 0 if all of it was.
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
import traceback
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
from psycopg.rows import namedtuple_row

import shop
from check import CHECKS, check

HERE = os.path.dirname(os.path.abspath(__file__))
SHOP = os.environ.get("PGDATABASE", "shop")
WORKERS = [shop.serve_clients] * 7 + [shop.resume_claims] * 2
WAITING = 100           # clients come as fast as the workers serve them: so many wait for their first answer
KILL_EVERY = 40         # orders, on average
STEPS = "open_here", "open_refused", "refused_here", "ledger", "lines", "amounts", "list"
STATEMENT = "settlement evening.jsonl"
failures = 0
seconds = {}            # what took how long


def say(why, what):
    global failures
    failures += bool(why)
    print(f"FAILED  {what}: {why}" if why else f"ok      {what}", flush=True)


def connect(database=SHOP, **options):
    return psycopg.connect(dbname=database, autocommit=True, row_factory=namedtuple_row, **options)


def run(program, *args, **options):
    return subprocess.Popen(["/usr/bin/python3", os.path.join(HERE, program), *args], text=True, **options)


@contextmanager
def timed(what):
    began = time.monotonic()
    yield
    seconds[what] = time.monotonic() - began


class Crew:
    """Workers. One that ended, however it did, is started again, as a service manager would."""

    def __init__(self, log):
        self.log, self.killed, self.crashed = log, 0, 0
        self.members = [self.start(work) for work in WORKERS]

    def start(self, work):
        """Forked, not started anew: of a hundred thousand orders, thousands are killed."""
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()         # as a service has; Linux shares a busy processor out among sessions
            os.dup2(self.log.fileno(), 2)
            os.environ["PGUSER"] = "shop"
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)         # nothing of the parent's is tidied up here, its connections least of all

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.crashed += os.waitpid(pid, 0)[1] != signal.SIGKILL

    def strike(self):
        i = random.randrange(len(WORKERS))
        self.kill(self.members[i])
        self.members[i] = self.start(WORKERS[i])
        self.killed += 1

    def dismiss(self):
        for pid in self.members:
            self.kill(pid)


def is_over(db):
    """Every client has its answer or has given up, and every claim is settled or parked."""
    return db.execute("""SELECT NOT EXISTS (SELECT FROM clients WHERE answer IS NULL AND asked < 5)
                            AND (SELECT count(*) FROM idempotency_claims)
                              = (SELECT count(*) FROM idempotency_stalled WHERE parked)""").fetchone()[0]


def let_in(db, came, orders):
    """More clients, if there are few that wait for their first answer. Returns how many."""
    return db.execute("""INSERT INTO clients (order_id, amount, ask_at)
                         SELECT n, 1000 + n, clock_timestamp()
                         FROM generate_series(%(came)s::bigint + 1, least(%(orders)s, %(came)s::bigint + %(waiting)s -
                              (SELECT count(*) FROM clients WHERE answer IS NULL AND asked < 5 AND asked = 0))) n""",
                      {"came": came, "orders": orders, "waiting": WAITING}).rowcount


def day(orders):
    """Until everything is done that retries can do. Returns when it began and ended."""
    with tempfile.TemporaryFile("w+") as log, connect() as db:
        began = db.execute("SELECT clock_timestamp()").fetchone()[0]
        crew, deadline, came, kill_at = Crew(log), time.monotonic() + 60 + orders / 20, 0, 0
        try:
            while (came < orders or not is_over(db)) and time.monotonic() < deadline:
                came += let_in(db, came, orders)
                if kill_at < came < orders:
                    crew.strike()
                    kill_at = came + random.randrange(2 * KILL_EVERY)
                time.sleep(0.05)
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
    """Each second. pg_cron knows seconds from 1.5 on; before that it starts a job once a minute, which then stays for one."""
    with connect("postgres") as db:
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        knows_seconds = db.execute("""SELECT string_to_array(substring(extversion, '^\\d+\\.\\d+'), '.')::integer[] >= '{1,5}'
                                      FROM pg_extension WHERE extname = 'pg_cron'""").fetchone()[0]
        when, command = ("1 seconds", "CALL settle_all()") if knows_seconds else ("* * * * *", """
            DO $$ BEGIN
                FOR i IN 1 .. 58 LOOP
                    CALL settle_all();
                    EXIT WHEN (SELECT bool_and(settled_at IS NOT NULL) FROM statements);
                    COMMIT;
                    PERFORM pg_sleep(1);
                END LOOP;
            END $$""")
        db.execute("SELECT cron.schedule_in_database('settle', %s, %s, %s, 'clerk')", [when, command, SHOP])


def wait_for_batch(orders):
    deadline = time.monotonic() + 300 + orders / 100
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


def copy_evening():
    """Into a database that was made in the morning: while pg_cron's session is in the shop's, that cannot be a template."""
    with connect() as shop_db, connect("evening") as copy:
        for table in "orders (id, amount, status)", "ledger", "clients", "idempotency_keys", "idempotency_claims":
            with shop_db.cursor().copy(f"COPY {table} TO STDOUT") as rows, copy.cursor().copy(f"COPY {table} FROM STDIN") as to:
                for row in rows:
                    to.write(row)
        copy.execute("ANALYZE")


def mutant(step, window, lines, ledger):
    """The evening once more, on a copy, by a batch without this step. Returns the names of the checks that find out."""
    name = f"mutant_{step}"
    with connect("postgres") as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE evening")
        statement_arrives(name, window, lines)
        settle(name, step)
        with connect(name) as copy:
            found = check(copy, ledger)
        db.execute(f"DROP DATABASE {name}")
    return found


def mutants(*evening):
    """Each step of the batch is taken out in turn: the checks must find out."""
    with ThreadPoolExecutor(2) as two:
        for step, found in zip(STEPS, two.map(lambda step: mutant(step, *evening), STEPS)):
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
    with timed("day"):
        window = day(options.orders)
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/settlement").read().decode().splitlines()
    if options.mutants:
        copy_evening()
    statement_arrives(SHOP, window, lines)
    if not cron:
        with timed("batch"):
            settle(SHOP)
    if options.mutants:
        with timed("mutants"):
            mutants(window, lines, ledger)
    if cron:
        with timed("waiting for pg_cron"):
            say(wait_for_batch(options.orders), "pg_cron has run the batch")
    show(ledger)
    with connect() as db, timed("checks"):
        found = check(db, ledger)
    for name in CHECKS:
        say(found.get(name), name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the provider's faults")
    parser.add_argument("--no-mutants", dest="mutants", action="store_false")
    options = parser.parse_args()
    # What was started is in sessions of its own, and must be ended on this way out too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ledger = folder + "/ledger"
        provider = run("provider.py", ledger, "--seed", str(options.seed), stdout=subprocess.PIPE, start_new_session=True)
        port = os.environ["PROVIDER_PORT"] = provider.stdout.readline().strip()
        cron = has_cron()
        try:
            with connect("postgres") as db:
                db.execute(f"CREATE DATABASE evening TEMPLATE {SHOP}")
            if cron:
                schedule_batch()
            evening(options, ledger, port, cron)
        finally:
            provider.kill()
            provider.wait()
    parts = ", ".join(f"{what} {n:.0f}" for what, n in seconds.items())
    print(f"orders: {options.orders}, seed: {options.seed}, seconds: {time.monotonic() - started:.0f} ({parts})")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
