# Those who move money: each sends a request with its key, again and again, until it has an answer.

import collections
import random
import threading
import time
import uuid

import pq

# What a client may be told and answers by trying again. Anything else is a finding.
RETRY = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "57014": "statement_timeout",
    "55P03": "lock_timeout",
    "IK409": "lease held by another",
    "IK410": "overtaken, refused",
    "IK423": "parked",
}
# What is told of a prepared transaction that someone else has settled or is settling.
MANAGED = ("42704", "55000")
LEASE = 0.4


class Again(Exception):
    """The client itself found that it has to try once more."""


class Passing(Exception):
    """The outside service did not answer in time. It may have acted."""


class Outside:
    """A service that the database knows nothing of, a card network: it charges once for each key it is given."""

    def __init__(self):
        self.lock = threading.Lock()
        self.charged = {}
        self.calls = 0

    def charge(self, key, amount, chance):
        with self.lock:
            self.calls += 1
            self.charged.setdefault(key, amount)
        if chance < 0.03:
            raise Passing


class Request:
    def __init__(self, rng, mode):
        self.mode = mode
        self.key = rng.choice((
            lambda: str(uuid.UUID(int=rng.getrandbits(128))),
            lambda: f"order {rng.getrandbits(48)} of O'Neil, \"Ltd\"",
            lambda: f"{rng.getrandbits(64):x}-ключ-\U0001F4B6",
            lambda: f"{rng.getrandbits(64):016x}" * 15))()
        self.src, self.dst = rng.sample(range(1, 41), 2)
        self.amount = rng.randint(1, 100)
        self.transit = rng.randint(1001, 1016)
        self.lock = threading.Lock()
        self.senders = 1
        self.answer = None

    def body(self, rng):
        """The same request, as different clients would write it."""
        fields = [f'"src": {self.src}', f'"dst": {self.dst}', f'"amount": {self.amount}', f'"transit": {self.transit}']
        rng.shuffle(fields)
        return "{" + rng.choice((", ", ",", " ,\n")).join(fields) + "}"

    def declined(self):
        return self.amount > 95


class Client(threading.Thread):
    never = None                            # what this one's work cannot be told
    never_ends_before_the_others = False    # they could not end without it

    def __init__(self, machine, name, seed):
        super().__init__(name=name, daemon=True)
        self.machine = machine
        self.rng = random.Random(seed)
        self.tally = collections.Counter()
        self.conn = None
        self.committing = False     # what is sent now may commit the work
        self.doubt = False          # a connection was lost just then

    # --- the loop ---

    def run(self):
        try:
            end = self.machine.all_answered if self.never_ends_before_the_others else self.machine.enough
            while not end.is_set():
                self.work()
        except Exception as error:          # a bug of the machine's own must not look like a pass
            self.machine.violation("the machine itself failed", f"{self.name}: {error!r}")
            if not isinstance(error, (pq.Failed, pq.Lost)):
                raise
        finally:
            self.disconnect()

    def work(self):
        request = self.machine.choose(self.rng)
        self.tally["requests"] += 1
        self.until_answered(request)

    def until_answered(self, request):
        tries = 0
        self.doubt = False
        while not self.machine.abandon.is_set():
            found = self.attempt(lambda: MODES[request.mode](self, request))
            if found is not None:
                replayed, answer = found
                self.answered(request, replayed, answer)
                self.spot_check(request)
                return
            tries += 1
            self.tally["retries"] += 1
            self.back_off(tries)
        self.machine.unanswered(request)

    def spot_check(self, request):
        """A key that has its answer: it can be looked up, and serves no other request."""
        draw = self.rng.random()
        if not self.machine.whole or draw > 0.03:
            return
        if draw < 0.015:
            self.attempt(lambda: self.look_up(request))
        else:
            self.attempt(lambda: self.misuse(request))

    def look_up(self, request):
        found = self.connection().query("SELECT outcome, response FROM idempotent_lookup('bank', $1)", request.key)
        if found != [("replayed", request.answer)]:
            self.machine.violation("a finished key is not found", f"{request.key!r}: {found}, not {request.answer}")
        self.tally["keys looked up"] += 1

    def misuse(self, request):
        try:
            self.connection().query("SELECT outcome FROM idempotent_begin('bank', $1, request => '{}')", request.key)
            self.machine.violation("another request was served", repr(request.key))
        except pq.Failed as failed:
            if failed.sqlstate != "IK422":
                raise
            self.tally["other requests refused"] += 1

    def back_off(self, tries):
        time.sleep(min(0.2, 0.002 * 2 ** min(tries, 8)) * self.rng.uniform(0.5, 1))

    def answered(self, request, replayed, answer):
        self.tally["answers by " + request.mode] += 1
        if replayed:
            self.tally["replays"] += 1
            # With nobody else after the key, it was our own commit whose answer was lost.
            if self.doubt and request.senders == 1:
                self.tally["lost answers found again"] += 1
        with request.lock:
            if request.answer is None:
                request.answer = answer
            elif request.answer != answer:
                self.machine.violation("two answers to one key",
                                       f"{request.key!r} {request.mode}: {request.answer} and {answer}")

    def attempt(self, work):
        """Try once. None: try again."""
        self.committing = False
        try:
            return work()
        except pq.Lost:
            self.tally["lost connections"] += 1
            self.doubt = self.doubt or self.committing
            self.disconnect()
        except pq.Failed as failed:
            if failed.sqlstate in RETRY and failed.sqlstate != self.never:
                self.tally["told: " + RETRY[failed.sqlstate]] += 1
            else:
                self.machine.violation("an error that no fault explains", f"{self.name}: {failed}")
            self.roll_back()
        except Again:
            self.roll_back()
        return None

    # --- the connection ---

    def connection(self):
        if self.conn is not None and self.rng.random() < 0.003:
            self.disconnect()
        if self.conn is None:
            self.conn = self.machine.connect(self.rng)
            self.tally["connections"] += 1
        return self.conn

    def disconnect(self):
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    def roll_back(self):
        """What an error leaves behind; harmless outside of a transaction."""
        if self.conn is None:
            return
        try:
            self.conn.command("ROLLBACK")
        except (pq.Lost, pq.Failed):
            self.disconnect()

    def commit(self, conn):
        self.committing = True
        tag = conn.command("COMMIT")
        self.committing = False
        if tag != "COMMIT":
            self.machine.violation("COMMIT rolled back in silence", self.name)
            raise Again

    # --- time-outs ---

    def begin(self, conn, level="READ COMMITTED"):
        """Begin a transaction, one in which a time-out may be about to fire. What to do in its middle."""
        conn.command("BEGIN ISOLATION LEVEL " + level)
        draw = self.rng.random()
        if draw < 0.004:
            conn.command("SET LOCAL statement_timeout = '5ms'")
            return lambda: conn.command("SELECT pg_sleep(0.02)")
        if draw < 0.008:
            conn.command("SET LOCAL idle_in_transaction_session_timeout = '5ms'")
            return lambda: time.sleep(0.02)
        if draw < 0.05:
            conn.command("SET LOCAL lock_timeout = '5ms'")
        return lambda: None


# --- the ways to do it ---

def by_procedure(self, request):
    conn = self.connection()
    self.committing = True
    [(replayed, answer)] = conn.query("SELECT replayed, response FROM bank.transfer($1, $2)",
                                      request.key, request.body(self.rng))
    return replayed == "t", answer


def by_call(self, request):
    conn = self.connection()
    self.committing = True
    work = "refuse" if request.declined() else "work"
    [(outcome, answer)] = conn.query(
        f"SELECT outcome, response FROM idempotent_call('bank', $1, 'SELECT bank.{work}($1, $2)',"
        " jsonb_build_array($1::text, $2::jsonb), remember_errors => true)", request.key, request.body(self.rng))
    return outcome == "replayed", answer


def move(conn, request, phase, src, dst):
    return conn.value("SELECT bank.move($1, $2, $3, $4, $5)", request.key, phase, src, dst, request.amount)


def finish(conn, request, entry, attempt=None):
    return conn.value("SELECT idempotent_finish('bank', $1, response => jsonb_build_object('entry', $2::bigint),"
                      " status => 200, attempt => $3)", request.key, entry, attempt)


def decline(conn, request):
    """The work was tried and is taken back, the answer that says so is kept."""
    conn.command("SAVEPOINT work")
    move(conn, request, "transfer", request.src, request.dst)
    conn.command("ROLLBACK TO SAVEPOINT work")
    return conn.value("SELECT idempotent_finish('bank', $1, response => jsonb_build_object('declined',"
                      " gen_random_uuid()), status => 402)", request.key)


def by_transaction(level):
    def run(self, request):
        conn = self.connection()
        in_the_middle = self.begin(conn, level)
        patient = not self.machine.whole or self.rng.random() < 0.8
        begin = "idempotent_begin" if patient else "idempotent_try_begin"
        [(outcome, answer)] = conn.query(f"SELECT outcome, response FROM {begin}('bank', $1, request => $2)",
                                         request.key, request.body(self.rng))
        if outcome == "replayed":
            conn.command("COMMIT")
            return True, answer
        if outcome == "in_progress" and not patient:
            self.tally["told: in progress"] += 1
            raise Again
        if outcome not in ("started", "recovered"):
            self.machine.violation("an outcome that no fault explains", outcome)
        in_the_middle()
        if request.declined():
            answer = decline(conn, request)
        else:
            answer = finish(conn, request, move(conn, request, "transfer", request.src, request.dst))
        self.commit(conn)
        if self.machine.unlock:             # a mistake, for --mutants alone: a lock of the session
            conn.query("SELECT mutant.unlock('bank', $1)", request.key)
        return False, answer
    return run


def by_two_phases(self, request):
    """PREPARE TRANSACTION, COMMIT PREPARED. What is lost in between is for the transaction manager, see Manager."""
    conn = self.connection()
    in_the_middle = self.begin(conn)
    [(outcome, answer)] = conn.query("SELECT outcome, response FROM idempotent_begin('bank', $1, request => $2)",
                                     request.key, request.body(self.rng))
    if outcome == "replayed":
        conn.command("COMMIT")
        return True, answer
    answer = finish(conn, request, move(conn, request, "transfer", request.src, request.dst))
    in_the_middle()
    name = f"{self.name} {self.tally['connections']} {self.rng.getrandbits(64):x}"
    self.committing = True
    conn.command(f"PREPARE TRANSACTION '{name}'")
    if self.rng.random() < 0.02:
        self.tally["died between prepare and commit"] += 1
        self.disconnect()
        raise Again
    try:
        conn.command(f"COMMIT PREPARED '{name}'")
    except pq.Failed as failed:
        if failed.sqlstate not in MANAGED:
            raise
        self.tally["prepared transactions settled by another"] += 1
        raise Again
    self.committing = False
    return False, answer


def key_apart(self, request):
    """A mistake, for --mutants alone: the key is committed first, the work after it."""
    conn = self.connection()
    self.begin(conn)
    [(outcome, answer)] = conn.query("SELECT outcome, response FROM idempotent_begin('bank', $1)", request.key)
    if outcome == "replayed":
        conn.command("COMMIT")
        return True, answer
    entry = conn.value("SELECT nextval(pg_get_serial_sequence('bank.effect', 'id'))")
    answer = finish(conn, request, entry)
    self.commit(conn)
    conn.command("BEGIN")
    conn.query("SELECT bank.move($1, 'transfer', $2, $3, $4)", request.key, request.src, request.dst, request.amount)
    conn.query("UPDATE bank.effect SET id = $2 WHERE key = $1", request.key, entry)
    self.commit(conn)
    return False, answer


def by_lease(self, request):
    conn = self.connection()
    # Whoever comes without a lease takes over what was left and finishes it in one transaction.
    lease = None if self.rng.random() < 0.05 else f"{LEASE} s"
    if lease is None:
        return take_over_at_once(self, conn, request)
    self.begin(conn)()
    [(outcome, attempt, answer, checkpoint)] = conn.query(
        "SELECT outcome, attempt, response, checkpoint FROM idempotent_begin('bank', $1, request => $2,"
        " lease => $3)", request.key, request.body(self.rng), lease)
    if outcome == "started" and attempt == "1" and self.rng.random() < 0.05:
        # Nothing was done: give the key back, but for its number.
        self.commit(conn)
        conn.query("SELECT idempotent_release('bank', $1, $2, reset => true)", request.key, attempt)
        self.tally["reset"] += 1
        raise Again
    if outcome != "replayed":
        self.commit(conn)
        if outcome == "recovered":
            self.tally["takeovers by begin"] += 1
        return False, in_phases(self, conn, request, attempt, checkpoint)
    conn.command("COMMIT")
    return True, answer


def in_phases(self, conn, request, attempt, checkpoint):
    """Take the money, have the outside service act, give the money: from where the key stands."""
    if checkpoint is None:
        in_the_middle = self.begin(conn)
        move(conn, request, "debit", request.src, request.transit)
        in_the_middle()
        conn.query("SELECT idempotent_checkpoint('bank', $1, $2, 'debited', '{\"by\": 1}')", request.key, attempt)
        self.commit(conn)
    call_outside(self, conn, request, attempt)
    in_the_middle = self.begin(conn)
    entry = move(conn, request, "credit", request.transit, request.dst)
    in_the_middle()
    answer = finish(conn, request, entry, attempt)
    self.commit(conn)
    return answer


def call_outside(self, conn, request, attempt):
    stall = self.rng.random()
    if stall < self.machine.stalls:             # so long that another attempt may have begun
        self.tally["stalled beyond the lease"] += 1
        time.sleep(LEASE * self.rng.uniform(1.0, 2.0))
    elif stall < 2 * self.machine.stalls:       # the worker dies here
        self.tally["died between phases"] += 1
        self.disconnect()
        raise Again
    try:
        self.machine.outside.charge("charge for " + request.key, request.amount, self.rng.random())
    except Passing:
        if self.rng.random() < 0.3:
            conn.query("SELECT idempotent_park('bank', $1, $2, 'nobody knows')", request.key, attempt)
            self.tally["parked"] += 1
        else:
            conn.query("SELECT idempotent_release('bank', $1, $2, 'no answer from outside', '10 ms')", request.key, attempt)
            self.tally["released"] += 1
        raise Again


def take_over_at_once(self, conn, request):
    in_the_middle = self.begin(conn, self.rng.choice(("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")))
    [(outcome, answer, checkpoint)] = conn.query(
        "SELECT outcome, response, checkpoint FROM idempotent_begin('bank', $1, request => $2)",
        request.key, request.body(self.rng))
    if outcome == "replayed":
        conn.command("COMMIT")
        return True, answer
    if checkpoint is None:
        move(conn, request, "debit", request.src, request.transit)
    in_the_middle()
    # The service honours the key, so that a transaction that is rolled back after the call does no harm.
    try:
        self.machine.outside.charge("charge for " + request.key, request.amount, self.rng.random())
    except Passing:
        raise Again
    answer = finish(conn, request, move(conn, request, "credit", request.transit, request.dst))
    self.commit(conn)
    if outcome == "recovered":
        self.tally["takeovers without a lease"] += 1
    return False, answer


MODES = {
    "procedure": by_procedure,
    "READ COMMITTED": by_transaction("READ COMMITTED"),
    "REPEATABLE READ": by_transaction("REPEATABLE READ"),
    "SERIALIZABLE": by_transaction("SERIALIZABLE"),
    "lease": by_lease,
    "idempotent_call": by_call,
    "two-phase commit": by_two_phases,
    "key apart": key_apart,
}


class Resumer(Client):
    """The batch that finishes what others have left."""

    def work(self):
        time.sleep(self.rng.uniform(0.02, 0.2))
        claims = self.attempt(self.resume)
        for key, attempt, checkpoint in claims or ():
            self.tally["takeovers by resume"] += 1
            request = self.machine.request(key)
            answer = self.attempt(lambda: in_phases(self, self.connection(), request, attempt, checkpoint))
            if answer is not None:
                self.answered(request, False, answer)

    def resume(self):
        conn = self.connection()
        conn.command("BEGIN")
        claims = conn.query("SELECT key, attempt, checkpoint FROM idempotent_resume($1, 3, 'bank')", f"{LEASE} s")
        self.commit(conn)
        return claims


class Support(Client):
    """Whoever is on call: hands parked claims out once more, one by one, and goes on with them."""

    never_ends_before_the_others = True    # they park until they end

    def work(self):
        time.sleep(self.rng.uniform(0.02, 0.1))
        for key, in self.attempt(lambda: self.connection().query(
                "SELECT key FROM idempotency_stalled WHERE scope = 'bank' AND parked")) or ():
            claim = self.attempt(lambda: self.retry(key))
            if claim:
                [(attempt, checkpoint)] = claim
                self.tally["parked claims handed out"] += 1
                request = self.machine.request(key)
                answer = self.attempt(lambda: in_phases(self, self.connection(), request, attempt, checkpoint))
                if answer is not None:
                    self.answered(request, False, answer)

    def retry(self, key):
        return self.connection().query("SELECT attempt, checkpoint FROM idempotent_retry('bank', $1, $2)", key, f"{LEASE} s")


class Manager(Client):
    """A transaction manager: settles what was prepared and then left, either way, since nobody has an answer of it."""

    never_ends_before_the_others = True

    def work(self):
        time.sleep(self.rng.uniform(0.02, 0.1))
        self.attempt(self.settle)

    def settle(self):
        conn = self.connection()
        for [name] in conn.query("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
                                 " AND prepared < clock_timestamp() - interval '200 ms'"):
            verb = self.rng.choice(("COMMIT", "ROLLBACK"))
            try:
                conn.command(f"{verb} PREPARED '{name}'")
                self.tally["prepared transactions settled by the manager"] += 1
            except pq.Failed as failed:
                if failed.sqlstate not in MANAGED:
                    raise
        return True


class Brief(Client):
    """Work on keys that expire in less than a second and are used again at once, while prune removes them."""

    def work(self):
        self.tally["requests"] += 1
        self.attempt(self.use)
        time.sleep(self.rng.uniform(0, 0.004))

    def use(self):
        conn = self.connection()
        key = f"brief {self.rng.randint(1, 60)}"
        retention = f"{self.rng.randint(50, 900)} ms"
        in_the_middle = self.begin(conn, self.rng.choice(("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")))
        [(outcome, first_seen_at)] = conn.query("SELECT outcome, first_seen_at FROM idempotent_begin('brief', $1,"
                                                " retention => $2)", key, retention)
        if outcome != "replayed":
            conn.query("INSERT INTO bank.brief VALUES ($1, $2, $3)", key, first_seen_at, retention)
            in_the_middle()
            conn.query("SELECT idempotent_finish('brief', $1, body => '\\x00ff')", key)
        conn.command("COMMIT")
        self.tally["brief keys " + ("replayed" if outcome == "replayed" else "used")] += 1
        return outcome


class Inbox(Client):
    """A consumer of a queue that delivers at least once, in batches that overlap with those of others."""

    never = "40P01"     # batches take their keys in one order

    def work(self):
        self.tally["requests"] += 1
        first = self.machine.next_message(self.rng.randint(0, 8))
        size = 250 if self.rng.random() < 0.03 else self.rng.randint(1, 25)
        batch = [f"message {first + n}" for n in self.rng.sample(range(-2 * size, size), size)]
        self.attempt(lambda: self.consume(batch))
        time.sleep(self.rng.uniform(0, 0.02))

    def consume(self, batch):
        conn = self.connection()
        in_the_middle = self.begin(conn, self.rng.choice(("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")))
        new = [row[0] for row in conn.query("SELECT idempotent_begin_many('inbox', $1)", array(batch))]
        if new:
            conn.query("INSERT INTO bank.message SELECT unnest($1::text[])", array(new))
            in_the_middle()
            conn.query("SELECT idempotent_finish_many('inbox', $1)", array(new))
        conn.command("COMMIT")
        self.tally["messages new"] += len(new)
        self.tally["messages known"] += len(batch) - len(new)
        return batch


class BriefInbox(Client):
    """The same, of a queue whose messages are known for less than a second only and are then new again, while prune
    removes them. What is known must have been new within its retention: nothing may get lost."""

    def work(self):
        self.tally["requests"] += 1
        size = 250 if self.rng.random() < 0.1 else self.rng.randint(1, 25)
        batch = [f"brief message {n}" for n in self.rng.sample(range(400), size)]
        level = self.rng.choice(("READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"))
        self.attempt(lambda: self.consume(batch, level, f"{self.rng.randint(50, 900)} ms"))
        time.sleep(self.rng.uniform(0, 0.02))

    def consume(self, batch, level, retention):
        conn = self.connection()
        in_the_middle = self.begin(conn, level)
        before = conn.value("SELECT clock_timestamp()")
        new = [row[0] for row in conn.query("SELECT idempotent_begin_many('brief inbox', $1, $2)", array(batch),
                                            retention)]
        after = conn.value("SELECT clock_timestamp()")
        if level == "READ COMMITTED":       # the others' snapshots may not see what was committed meanwhile
            self.look_for_lost(conn, sorted(set(batch) - set(new)), before)
        if new:
            conn.query("INSERT INTO bank.brief_message SELECT unnest($1::text[]), $2, $3, $4", array(new), before,
                       after, retention)
            in_the_middle()
            self.finish(conn, new)
        conn.command("COMMIT")
        self.tally["brief messages new"] += len(new)
        self.tally["brief messages known"] += len(batch) - len(new)
        return batch

    def finish(self, conn, new):
        """A batch that took longer than its retention cannot be finished."""
        try:
            conn.query("SELECT idempotent_finish_many('brief inbox', $1)", array(new))
        except pq.Failed as failed:
            if failed.sqlstate != "IK500":
                raise
            self.tally["batches that expired on the way"] += 1
            raise Again

    def look_for_lost(self, conn, known, before):
        # Expiry is rounded up by less than 1/256 of the retention.
        lost = conn.query("SELECT key FROM unnest($1::text[]) AS key WHERE NOT EXISTS (SELECT FROM bank.brief_message m"
                          " WHERE m.key = key.key AND m.after + m.retention * (1 + 1 / 256.0) > $2::timestamptz)",
                          array(known), before)
        if lost:
            self.machine.violation("a message was lost", f"{len(lost)} of {len(known)}, such as {lost[0]}")


def array(keys):
    return "{" + ",".join(f'"{key}"' for key in keys) + "}"


class Pruner(Client):
    """Prune without end, as the owner."""

    def work(self):
        self.attempt(self.prune)
        time.sleep(self.rng.uniform(0, 0.03))

    def prune(self):
        if self.conn is None:
            self.conn = self.machine.admin()
        removed = int(self.conn.value("SELECT idempotent_prune($1)", self.rng.choice((1, 10, 10000))))
        self.tally["prunes"] += 1
        self.tally["keys pruned"] += removed
        return removed
