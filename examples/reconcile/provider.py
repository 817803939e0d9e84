#!/usr/bin/python3
"""The payment provider: charges cards over HTTP, and has a ledger of its own, in SQLite.

    provider.py LEDGER [--seed N]

Prints the port it listens on. POST /charges with an Idempotency-Key; GET /settlement gives its ledger as JSON lines.

It honours its keys, and has bad days. Which key meets with which fault is drawn from the seed and the key, not from what
happens at the time, so that the same seed gives the same faults; they are noted in the ledger for whoever checks.
"""
import argparse
import json
import random
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

SILENCE = 1.5           # seconds: longer than any caller waits
EVER = 99               # calls


class Fault(NamedTuple):
    share: float        # of all keys
    acts: dict          # what is entered into the ledger, by the number of the call
    silent: int = 0     # how many calls get no answer
    says: int = 200     # the answer after that
    busy: int = 0       # how many calls are answered with 503, before anything is done


FAULTS = {
    # What retries under the same key put right.
    "busy at first": Fault(0.03, {3: "pay"}, busy=2),
    "times out before it acts": Fault(0.03, {3: "pay"}, silent=2),
    "acts and keeps silent": Fault(0.04, {1: "pay"}, silent=2),
    # What the settlement file puts right.
    "acts and keeps silent for good": Fault(0.03, {1: "pay"}, silent=EVER),
    "refuses and keeps silent for good": Fault(0.02, {1: "refuse"}, silent=EVER),
    "refuses and has paid": Fault(0.03, {1: "pay"}, says=402),
    # What nobody can settle from here.
    "never acts, never answers": Fault(0.01, {}, silent=EVER),
    "forgets the key and pays twice": Fault(0.01, {1: "pay", 2: "pay"}, silent=1),
    "pays twice and keeps silent": Fault(0.01, {1: "pay", 2: "pay"}, silent=EVER),
    "alters the amount": Fault(0.01, {1: "alter"}),
    "alters the amount and keeps silent": Fault(0.01, {1: "alter"}, silent=EVER),
    "alters the amount and says refused": Fault(0.01, {1: "alter"}, says=402),
    "says paid and never acts": Fault(0.01, {}),
    "says paid and refuses": Fault(0.01, {1: "refuse"}),
    "pays under a key of nobody": Fault(0.01, {1: "pay for nobody"}),
    # No fault at all: a card that is declined.
    "refuses": Fault(0.05, {1: "refuse"}, says=402),
}
NO_FAULT = Fault(0, {1: "pay"})


def fault_of(key):
    """The fault's name and what it is; None where there is none."""
    dice = random.Random(f"{options.seed} {key}").random()
    for name, fault in FAULTS.items():
        dice -= fault.share
        if dice < 0:
            return name, fault
    return None, NO_FAULT


class Ledger:
    def __init__(self, path):
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.db.executescript("""
            PRAGMA journal_mode = wal;
            PRAGMA synchronous = off;
            CREATE TABLE charges (n INTEGER PRIMARY KEY, key TEXT, order_id INTEGER, ok INTEGER, amount INTEGER);
            CREATE TABLE calls (key TEXT, order_id INTEGER, n INTEGER, amount INTEGER, PRIMARY KEY (key, n));
            CREATE TABLE faults (key TEXT PRIMARY KEY, order_id INTEGER, fault TEXT);
        """)
        self.lock = threading.Lock()

    def take_call(self, key, order):
        """Note the call and do what is due in it. Returns the number of the call. All in one transaction."""
        name, fault = fault_of(key)
        with self.lock:
            self.db.execute("BEGIN")
            n = self.db.execute("SELECT count(*) + 1 FROM calls WHERE key = ?", [key]).fetchone()[0]
            self.db.execute("INSERT INTO calls VALUES (?, ?, ?, ?)", [key, order["order"], n, order["amount"]])
            if n == 1 and name:
                self.db.execute("INSERT INTO faults VALUES (?, ?, ?)", [key, order["order"], name])
            if n in fault.acts:
                self.act(fault.acts[n], key, order)
            self.db.execute("COMMIT")
        return n

    def act(self, what, key, order):
        amount = order["amount"] + 100 if what == "alter" else order["amount"]
        self.enter(key, order["order"], what != "refuse", amount)
        if what == "pay for nobody":
            self.enter(f"{random.Random(key).getrandbits(256):064x}", None, True, amount)

    def enter(self, *charge):
        self.db.execute("INSERT INTO charges (key, order_id, ok, amount) VALUES (?, ?, ?, ?)", charge)

    def number_of(self, key):
        with self.lock:
            return self.db.execute("SELECT max(n) FROM charges WHERE key = ?", [key]).fetchone()[0]

    def settlement(self):
        with self.lock:
            lines = self.db.execute("SELECT key, ok, amount, n FROM charges ORDER BY n").fetchall()
        return "".join(json.dumps({"key": key, "ok": bool(ok), "amount": amount, "charge": f"ch_{n}"}) + "\n"
                       for key, ok, amount, n in lines)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"       # one connection for many calls
    disable_nagle_algorithm = True      # an answer is two writes; the second must not wait until the first is acknowledged

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        text = self.rfile.read(length)
        if len(text) < length:
            self.close_connection = True        # the caller was killed while it sent this
            return
        order, key = json.loads(text), self.headers["Idempotency-Key"]
        n = ledger.take_call(key, order)
        fault = fault_of(key)[1]
        if n <= fault.busy:
            self.answer(503, {})
        elif n <= fault.silent:
            self.keep_silent()
        elif fault.says == 402:
            self.answer(402, {"error": "card_declined"})
        else:
            self.answer(200, {"charge": f"ch_{ledger.number_of(key)}"})

    def keep_silent(self):
        """Mostly the connection is dropped, at times the caller is left to wait: it knows as little either way."""
        if random.random() < 0.05:
            time.sleep(SILENCE)
        self.close_connection = True

    def do_GET(self):
        self.send(200, "application/jsonl", ledger.settlement().encode())

    def answer(self, status, body):
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status, content_type, body):
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True        # the caller has hung up, or was killed

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass                                # likewise

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ledger = Ledger(options.ledger)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
