#!/usr/bin/env python3
#
# The fault machine: tries to refute that a key's work is done exactly once and everyone gets the same answer.
#
#   machine.py [--seconds N | --minutes N] [--seed N] [--mutants] [--clients N] [--edition c|sql]
#
# Clients move money over a wire that breaks, on servers that are killed, while the tables are pruned, rewritten and
# dumped (clients.py, proxy.py, cluster.py, faults.py); the books say whether it was done right (bank.sql, oracle.py).
# --mutants has it prove on known mistakes that it finds them (mutants.py). PG_CONFIG names the installation to test;
# the servers are the machine's own, below $TMPDIR. The last line is "N passed, N failed".
#
# Python, because the machine is many threads that wait and a few processes to be steered, and Python's standard
# library has all of that; the hot path is libpq, called directly (pq.py), which is what Debian's psycopg would do at
# twice the cost and with a package more. Perl's test modules drive servers as well, but have no libpq of their own.
#
# The seed decides what each client and the fault driver draw. What the scheduler makes of it is not repeatable; a
# finding therefore comes with its evidence, and the servers' folder is kept.

import argparse
import collections
import os
import random
import re
import signal
import sys
import threading
import time
import traceback

import clients
import cluster as cluster_module
import faults
import mutants
import oracle
import pq

SHOWN = 5           # examples of one kind of violation
MORE_TIME = 180     # seconds that a run may go on for what has not happened yet
MUTANT_ROUNDS = 5   # in which a mistake must be found

# What a run must have come to, beside the faults.
EVENTS = ("replays", "lost answers found again", "takeovers by begin", "takeovers by resume", "told: overtaken, refused",
          "prepared transactions settled by the manager", "other requests refused", "keys looked up", "keys pruned", "looks")


class Machine:
    """One database with its clients, run in rounds; each round ends at rest and with empty books."""

    def __init__(self, cluster, database, seed, number, modes, pooled=0.4, stalls=0.01, patience=60, unlock=False,
                 whole=True, inbox=False):
        self.cluster, self.database, self.seed, self.number = cluster, database, seed, number
        self.modes, self.stalls, self.patience, self.unlock = modes, stalls, patience, unlock
        self.pooled = pooled if cluster_module.POOLER else 0
        self.whole, self.inbox = whole, inbox
        self.lock = threading.Lock()
        self.tally = collections.Counter()
        self.violations = collections.Counter()
        self.examples = []
        self.outside_calls = 0
        self.messages = 0
        self.rounds = 0

    # --- for the clients ---

    def connect(self, rng):
        return self.cluster.client(self.database, rng.random() < self.pooled)

    def admin(self):
        return self.cluster.admin(self.database)

    def choose(self, rng):
        """A new request, or one that somebody else is sending too or has had answered."""
        with self.lock:
            if self.recent and rng.random() < 0.2:
                request = rng.choice(self.recent)
                request.senders += 1
                return request
            request = clients.Request(rng, rng.choice(self.modes))
            self.requests[request.key] = request
            self.recent.append(request)
            return request

    def next_message(self, step):
        with self.lock:
            self.messages += step
            return self.messages

    def request(self, key):
        return self.requests[key]

    def violation(self, what, example):
        with self.lock:
            self.violations[what] += 1
            if self.violations[what] <= SHOWN:
                self.examples.append(f"{what}: {example}")
                print(f"  VIOLATION  {what}: {example}", flush=True)

    def has_found(self, names):
        return any(self.violations[name] for name in names)

    def unanswered(self, request):
        self.violation("a key is stuck", f"{request.key!r} {request.mode}")

    # --- a round ---

    def round(self, seconds, fault_kinds, stop_at_violation=False):
        self.rounds += 1
        before = self.violations.total()
        self.enough, self.all_answered, self.abandon = threading.Event(), threading.Event(), threading.Event()
        self.requests, self.recent = {}, collections.deque(maxlen=40)
        self.outside = clients.Outside()
        rng = random.Random(f"{self.seed} {self.database} {self.rounds}")
        crew = self.hire(rng)
        self.cluster.proxy.strength.value = 1.0
        for client in crew:
            client.start()
        driver = faults.Driver(self, rng, fault_kinds)
        driver.run(time.monotonic() + seconds, lambda: stop_at_violation and self.violations.total() > before)
        self.come_to_rest(crew)
        for client in crew:
            self.tally += client.tally
        self.tally += driver.tally
        self.outside_calls += self.outside.calls
        self.judge()
        self.empty_the_books()

    def hire(self, rng):
        crew = [clients.Client(self, f"client {n}", rng.random()) for n in range(self.number)]
        if "lease" in self.modes:
            crew.append(clients.Resumer(self, "resumer", rng.random()))
        if "lease" in self.modes and self.whole:
            crew.append(clients.Support(self, "support", rng.random()))
        if self.whole:
            crew += [clients.Brief(self, f"brief {n}", rng.random()) for n in range(2)]
        if "two-phase commit" in self.modes:
            crew.append(clients.Manager(self, "manager", rng.random()))
        if self.inbox:
            crew += [clients.Inbox(self, f"inbox {n}", rng.random()) for n in range(2)]
            crew += [clients.BriefInbox(self, f"brief inbox {n}", rng.random()) for n in range(2)]
        crew.append(clients.Pruner(self, "pruner", rng.random()))
        return crew

    def come_to_rest(self, crew):
        """Everyone finishes the request at hand, under cuts still, but nothing is killed any more."""
        self.enough.set()
        end = time.monotonic() + self.patience
        for client in sorted(crew, key=lambda client: client.never_ends_before_the_others):
            if client.never_ends_before_the_others:
                self.all_answered.set()
            client.join(max(0, end - time.monotonic()))
        if any(client.is_alive() for client in crew):
            self.tell_who_waits()
            self.abandon.set()
            self.all_answered.set()
            end = time.monotonic() + 30
            for client in crew:
                client.join(max(0, end - time.monotonic()))
                if client.is_alive():
                    self.violation("a client hangs", client.name)
        self.cluster.proxy.strength.value = 0.0

    def tell_who_waits(self):
        with self.cluster.admin_when_up(self.database) as admin:
            for row in admin.query("SELECT pid, state, wait_event_type, wait_event, left(query, 90),"
                                   " pg_blocking_pids(pid) FROM pg_stat_activity"
                                   " WHERE datname = current_database() AND pid <> pg_backend_pid()"):
                print("  at work:", *row)

    # --- judgement ---

    def look(self):
        """Whatever is going on: what must be true at every moment."""
        while True:
            try:
                with self.cluster.admin_when_up(self.database) as admin:
                    found = oracle.look(admin, oracle.QUERIES)
                    break
            except pq.Lost:
                pass
        for what, example in found:
            self.violation(what, example)

    def judge(self):
        with self.cluster.admin_when_up(self.database) as admin:
            self.wait_for_orphans(admin)
            found = oracle.look(admin, oracle.QUERIES + oracle.AT_REST)
            found += oracle.compare_answers(admin, self.requests.values())
        for request in self.requests.values():
            if request.mode == "lease" and request.answer is not None \
                    and self.outside.charged.get("charge for " + request.key) != request.amount:
                found.append(("a payment that the outside service does not know", repr(request.key)))
        for what, example in found:
            self.violation(what, example)
        self.tally["keys"] += len(self.requests)

    def wait_for_orphans(self, admin):
        """Sessions whose client has gone notice it when they have done what they were sent."""
        end = time.monotonic() + 10
        while admin.value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND datname = current_database()"
                          " AND state <> 'idle'") != "0" and time.monotonic() < end:
            time.sleep(0.02)

    def empty_the_books(self):
        with self.cluster.admin_when_up(self.database) as admin:
            admin.command("UPDATE bank.account SET base = balance;"
                          " TRUNCATE bank.effect, bank.brief, bank.message, bank.brief_message;"
                          " TRUNCATE idem.idempotency_keys, idem.idempotency_claims")


# --- a run ---

class Verdict:
    def __init__(self):
        self.passed = self.failed = 0
        self.failures = []

    def add(self, good, what):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(what)
        print(f"{'ok     ' if good else 'FAILED '} {what}", flush=True)


# The SQL edition is a script in place of the extension.
def bank_script(edition):
    here = os.path.dirname(__file__)
    with open(os.path.join(here, "bank.sql")) as file:
        script = file.read()
    if edition == "sql":
        with open(os.path.join(here, "..", "..", "sql", "idempotency.sql")) as file:
            objects = file.read().split("-- SQL from here", 1)[1]
        script = script.replace("CREATE EXTENSION idempotency SCHEMA idem;",
                                "SET idempotency_sql.schema = 'idem';" + objects)
    return script


def make_database(cluster, name, sql=""):
    with cluster.admin("postgres") as admin:
        if admin.value("SELECT count(*) FROM pg_database WHERE datname = 'empty_bank'") == "0":
            admin.command("CREATE DATABASE empty_bank")
            with cluster.admin("empty_bank") as bank:
                bank.command(bank_script(cluster.edition))
        admin.command(f"CREATE DATABASE {name} TEMPLATE empty_bank")
    with cluster.admin(name) as bank:
        if sql:
            bank.command(sql)
            bank.command("DO $$ BEGIN IF to_regnamespace('mutant') IS NOT NULL THEN"
                         " GRANT USAGE ON SCHEMA mutant TO app; END IF; END $$")
        bank.command(f"ALTER DATABASE {name} SET search_path = mutant, idem, public")
        bank.command(f"ALTER DATABASE {name} SET idempotency.max_attempts = {4 if not sql else 0}")


def modes_there_are(cluster, database):
    modes = ["procedure", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "two-phase commit", "lease"]
    if cluster.edition == "c" and has_function(cluster, database, "idempotent_call"):
        modes.append("idempotent_call")
    return modes


def has_function(cluster, database, name):
    with cluster.admin(database) as admin:
        return admin.value("SELECT to_regproc('idem.' || $1)", name) is not None


def run_product(cluster, options, verdict):
    make_database(cluster, "bank")
    modes = modes_there_are(cluster, "bank")
    machine = Machine(cluster, "bank", options.seed, options.clients, modes, stalls=0.02,
                      inbox=has_function(cluster, "bank", "idempotent_begin_many"))
    started = time.monotonic()
    remaining = options.seconds
    length = min(60, max(20, options.seconds / 2))
    # A last round that would be short is added to the one before.
    print("  at work", flush=True)
    while remaining > 0:
        seconds = length if remaining >= 1.5 * length else remaining
        machine.round(seconds, faults.ALL)
        remaining = options.seconds - (time.monotonic() - started)
        print(f"  round {machine.rounds}: {machine.tally['requests']} requests, {machine.tally['retries']} retries,"
              f" {sum(machine.violations.values())} violations so far", flush=True)
        if remaining < length / 2:
            break
    # What a slow machine has not come to yet gets its time; a run in which something never happens has not tested it.
    while missing(machine, cluster) and time.monotonic() - started < options.seconds + MORE_TIME:
        print("  more time, for: " + ", ".join(missing(machine, cluster)), flush=True)
        machine.round(length, faults.ALL)
    report(machine, cluster, modes, time.monotonic() - started)
    judge_product(machine, cluster, verdict)


def lines(title, counts):
    print(f"\n{title}")
    for name, count in counts:
        print(f"  {count:>9}  {name}")


def report(machine, cluster, modes, seconds):
    tally, wire = machine.tally, cluster.proxy.counted()
    print(f"\n{cluster.version}, seed {machine.seed}, {seconds:.0f} s in {machine.rounds} rounds,"
          f" {machine.number} clients")
    if not cluster_module.POOLER:
        print("SKIPPED: PgBouncer, which is not installed")
    if "idempotent_call" not in modes:
        print("SKIPPED: idempotent_call, which the extension does not have")
    if not machine.inbox:
        print("SKIPPED: idempotent_begin_many, which the extension does not have")
    lines("requests", [("requests", tally["requests"]), ("different keys", tally["keys"])]
          + [("answers by " + mode, tally["answers by " + mode]) for mode in modes]
          + [(name, tally[name]) for name in ("retries", "replays", "connections", "lost connections")]
          + sorted((name, count) for name, count in tally.items() if name.startswith("told: ")))
    lines("commits whose answer was lost",
          [("committed, and the answer dropped by the wire", wire["commit answered"]),
           ("cut after COMMIT was sent, outcome unknown to the client", wire["commit sent"]),
           ("found by the retry, which got the stored answer, nobody else having sent the request",
            tally["lost answers found again"])])
    lines("across transactions",
          [(name, tally[name]) for name in ("takeovers by begin", "takeovers by resume", "takeovers without a lease",
                                            "stalled beyond the lease", "died between phases", "released")]
          + [("writes of overtaken attempts refused", tally["told: overtaken, refused"]),
             ("calls to the outside service", machine.outside_calls)])
    lines("beside it", [(name, tally[name]) for name in
                        ("keys looked up", "other requests refused", "died between prepare and commit",
                         "prepared transactions settled by the manager", "prepared transactions settled by another",
                         "brief keys used", "brief keys replayed", "messages new", "messages known",
                         "brief messages new", "brief messages known", "prunes",
                         "keys pruned")])
    kinds = fault_counts(machine, cluster)
    lines(f"faults: {sum(kinds.values())}", kinds.items())
    lines("looks at the books while everyone was at work", [("looks", tally["looks"])])


def fault_counts(machine, cluster):
    tally, wire = machine.tally, cluster.proxy.counted()
    kinds = {f"connection cut: {name}": wire[name] for name in cluster_module.proxy.NAMES}
    kinds["all connections cut at once"] = wire["all cut"]
    # A client may not live to hear of its time-out: the log tells.
    for name, message in (("statement_timeout", "statement timeout"), ("lock_timeout", "lock timeout"),
                          ("idle_in_transaction_session_timeout", "idle-in-transaction timeout")):
        kinds[name + " fired"] = cluster.count_logged("due to " + message)
    for kind in faults.ALL:
        if kind != "cut all":
            kinds[kind] = tally["fault: " + kind]
    return kinds


def events(machine, cluster):
    """How often it came to each thing that a run must have come to."""
    counts = {kind: count for kind, count in fault_counts(machine, cluster).items()
              if cluster_module.POOLER or kind != "restart PgBouncer"}
    counts.update((name, machine.tally[name]) for name in EVENTS)
    return counts


def missing(machine, cluster):
    return [name for name, count in events(machine, cluster).items() if not count]


def judge_product(machine, cluster, verdict):
    print()
    properties = [what for what, query in oracle.QUERIES + oracle.AT_REST] + [
        "two answers to one key", "a key without an answer", "an answer that is not the stored one",
        "a stored key that nobody asked for", "a message was lost", "a payment that the outside service does not know",
        "a key is stuck"]
    for what in properties:
        verdict.add(not machine.violations[what], "never: " + what)
    others = sorted(set(machine.violations) - set(properties))
    verdict.add(not others, "nothing else was found" if not others else "found: " + ", ".join(others))
    for name, count in events(machine, cluster).items():
        verdict.add(count > 0, "it happened: " + name)


def run_mutants(cluster, options, verdict):
    print("\nmistakes to be found")
    for number, mutant in enumerate(mutants.MUTANTS):
        if mutant.pooled == 1.0 and not cluster_module.POOLER:
            print(f"SKIPPED  {mutant.name}: PgBouncer is not installed")
            continue
        database = f"mutant_{number}"
        make_database(cluster, database, mutant.sql)
        machine = Machine(cluster, database, options.seed, options.clients, mutant.modes, pooled=mutant.pooled,
                          stalls=mutant.stalls, patience=mutant.patience, unlock=mutant.unlock, whole=False, inbox=mutant.inbox)
        started = time.monotonic()
        sys.stdout.flush()
        with Quiet(mutant.expected):
            # One that needs luck may need another round. The one without a mistake has its one.
            for _ in range(MUTANT_ROUNDS if mutant.expected else 1):
                machine.round(mutant.seconds, mutant.faults, stop_at_violation=True)
                if machine.has_found(mutant.expected):
                    break
        found = ", ".join(sorted(machine.violations)) or "nothing"
        seconds = time.monotonic() - started
        good = machine.has_found(mutant.expected) if mutant.expected else not machine.violations
        verdict.add(good, f"{mutant.name}: found {found}, {machine.tally['requests']} requests, {seconds:.1f} s")


class Quiet:
    """Violations that are expected are told in one line, not one by one."""

    def __init__(self, quiet):
        self.quiet = quiet

    def __enter__(self):
        if self.quiet:
            self.stdout, sys.stdout = sys.stdout, open(os.devnull, "w")

    def __exit__(self, *error):
        if self.quiet:
            sys.stdout.close()
            sys.stdout = self.stdout


def judge_logs(cluster, verdict):
    """No internal error, no crash but those that were meant."""
    # The server logs what became of a cut connection by the system's error, and one that it has no code for as internal.
    about_wire = re.compile(r"\] XX000 LOG:  could not (send data to|receive data from) client: ")
    bad = [line.strip() for line in cluster.log_lines()
           if "TRAP:" in line or "PANIC:" in line or "] XX" in line and not about_wire.search(line)
           or "terminated by signal" in line and "signal 9" not in line]
    for line in bad[:20]:
        print("  ", line)
    verdict.add(not bad, "no internal error and no crash but the intended ones in the servers' logs")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10 ** 6))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--edition", choices=("c", "sql"), default="c")
    options = parser.parse_args()
    if options.minutes is not None:
        options.seconds = 60 * options.minutes
    print(f"seed {options.seed}", flush=True)

    # However it is told to end, its servers end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    verdict = Verdict()
    cluster = cluster_module.Cluster(os.environ.get("PG_CONFIG", "pg_config"), options.seed)
    cluster.edition = options.edition
    try:
        cluster.start()
        if options.seconds > 0:
            run_product(cluster, options, verdict)
        if options.mutants:
            run_mutants(cluster, options, verdict)
        judge_logs(cluster, verdict)
    except (KeyboardInterrupt, SystemExit) as told:
        cluster.give_up(told)
    except BaseException as error:
        print(f"the machine itself failed: {error!r}\n{cluster.log_tail()}", flush=True)
        traceback.print_exc(file=sys.stdout)
        verdict.add(False, "the machine ran to its end")
    finally:
        cluster.stop()
        if verdict.failed == 0:
            cluster.remove()
        else:
            print(f"the servers' folder is kept: {cluster.folder}")
            for what in verdict.failures:   # once more, where one looks first
                print("FAILED  " + what)
        print(f"\n{verdict.passed} passed, {verdict.failed} failed", flush=True)
    sys.exit(verdict.failed > 0 or verdict.passed == 0)


if __name__ == "__main__":
    main()
