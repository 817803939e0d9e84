#!/usr/bin/python3
"""The outside service: takes charges and e-mails over HTTP, and has a ledger of its own, in SQLite.

It does what payment services do: it remembers the Idempotency-Key with what it answered, and answers a repetition from
memory. And what they do on a bad day: fails before it acts, or acts and never says so. For most orders that passes; for
one in ten it is down, and of one in ten it acts and keeps silent, until SIGUSR1 repairs it.

    service.py LEDGER [--trouble SHARE] [--forgetful]

Prints the port it listens on. --forgetful ignores the key, to see what the key is good for.
"""
import argparse
import json
import random
import signal
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SILENCE = 1.5           # seconds: longer than any caller waits


class Ledger:
    def __init__(self, path):
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.db.executescript("""
            PRAGMA journal_mode = wal;
            PRAGMA synchronous = off;
            CREATE TABLE acts (id INTEGER PRIMARY KEY, path TEXT, order_id INTEGER, amount INTEGER);
            CREATE TABLE keys (key TEXT PRIMARY KEY, path TEXT, request TEXT, answer TEXT);
            CREATE TABLE calls (path TEXT, order_id INTEGER, key TEXT, kind TEXT);
        """)
        self.lock = threading.Lock()

    def note(self, *call):
        with self.lock:
            self.db.execute("INSERT INTO calls VALUES (?, ?, ?, ?)", call)

    def act(self, path, key, request):
        """Act once for a key. The act and the key are one transaction, so that one is never there without the other.

        Returns status, answer and whether it was known.
        """
        with self.lock:
            known = self.db.execute("SELECT path, request, answer FROM keys WHERE key = ?", (key,)).fetchone()
            if known and known[:2] != (path, request):
                return 422, "the key was used for something else", True
            if known:
                return 200, known[2], True
            wanted = json.loads(request)
            self.db.execute("BEGIN")
            act = self.db.execute("INSERT INTO acts (path, order_id, amount) VALUES (?, ?, ?)",
                                  (path, wanted["order"], wanted.get("amount"))).lastrowid
            answer = json.dumps({"id": f"{path[1:3]}_{act}"})
            if key is not None:
                self.db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (key, path, request, answer))
            self.db.execute("COMMIT")
            return 200, answer, False


def trouble_with(order):
    """How this call goes wrong: "down", "silent" or not at all."""
    if repaired.is_set():
        return None
    if order % 5 == 0:
        return "silent" if order % 10 == 0 else "down"
    dice = random.random()
    return "down" if dice < options.trouble / 2 else "silent" if dice < options.trouble else None


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        request = self.rfile.read(length)
        if len(request) < length:
            return      # the caller was killed while it sent this
        order, key = json.loads(request)["order"], self.headers["Idempotency-Key"]
        trouble = trouble_with(order)
        time.sleep(random.uniform(0.01, 0.05))
        if trouble == "down":
            ledger.note(self.path, order, key, "failed before acting")
            return self.answer(503, "{}")
        status, answer, known = ledger.act(self.path, None if options.forgetful else key, request.decode())
        did = "knew it and " if known else "acted and "
        if trouble == "silent":
            ledger.note(self.path, order, key, did + "kept silent")
            return self.keep_silent()
        ledger.note(self.path, order, key, did + "answered")
        self.answer(status, answer)

    def keep_silent(self):
        """Mostly the connection is dropped, at times the caller is left to wait: it knows as little either way."""
        if random.random() < 0.2:
            time.sleep(SILENCE)

    def answer(self, status, text):
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass        # the caller has hung up, or was killed

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger")
    parser.add_argument("--trouble", type=float, default=0.3)
    parser.add_argument("--forgetful", action="store_true")
    options = parser.parse_args()
    ledger, repaired = Ledger(options.ledger), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: repaired.set())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
