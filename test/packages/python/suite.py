#!/usr/bin/python3
"""One black-box suite for every framework: suite.py SERVICE PYTHON FRAMEWORK… prints a line "ok" or "FAILED" for each property."""
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid

import psycopg

SERVICE, PYTHON, FRAMEWORKS = sys.argv[1], sys.argv[2], sys.argv[3:]
DB = psycopg.connect("", autocommit=True)


class Running:
    """A service process; a with block."""

    def __init__(self, framework, profile="ietf", **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [PYTHON, SERVICE, framework, str(self.port), profile]
        self.environment = {**os.environ, **environment}

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.environment)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def send(self, key, body=None, path="/payments", method="POST", account="one", kind="application/json", **headers):
        """status, headers in lower case, body; a status of None where the connection ended without an answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        given = {"X-Account": account, "Content-Type": kind, **headers}
        if key is not None:
            given["Idempotency-Key"] = key
        if account is None:
            del given["X-Account"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, given)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        except (OSError, http.client.HTTPException):
            return None, {}, b""
        finally:
            connection.close()

    def head(self, path, account="one"):
        """status, content-length, and what came after the headers, which http.client would not read."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nX-Account: {account}\r\nConnection: close\r\n\r\n".encode())
            top, _, rest = b"".join(iter(lambda: line.recv(65536), b"")).partition(b"\r\n\r\n")
        lengths = [field[15:].strip() for field in top.decode().lower().split("\r\n") if field.startswith("content-length:")]
        return int(top.split()[1]), lengths, rest


def check(name, got, wanted):
    if got == wanted:
        print(f"ok      {name}", flush=True)
    else:
        print(f"FAILED  {name}: got {got!r}, wanted {wanted!r}", flush=True)


def count(reference, account="one"):
    return DB.execute("SELECT count(*) FROM payments WHERE reference = %s AND account = %s", [reference, account]).fetchone()[0]


def stored(key):
    return DB.execute("SELECT count(*) FROM idempotency_keys WHERE key = %s", [key]).fetchone()[0]


def wait_for(sql):
    deadline = time.monotonic() + 30
    while not DB.execute(sql).fetchone()[0]:
        if time.monotonic() > deadline:
            raise TimeoutError(sql)
        time.sleep(0.01)


def ietf(framework, service):
    new = lambda: str(uuid.uuid4())     # noqa: E731
    key, reference = new(), new()
    first = service.send(f'"{key}"', {"reference": reference})
    again = service.send(f'"{key}"', {"reference": reference})
    check(f"{framework}: first and retry", [first[0], again[0], again[2] == first[2]], [201, 201, True])
    check(f"{framework}: the work ran once, and only the replay says so",
          [count(reference), first[1].get("idempotency-replayed"), again[1].get("idempotency-replayed")], [1, None, "true"])
    check(f"{framework}: cookies are not kept, other headers are",
          [first[1].get("set-cookie"), again[1].get("set-cookie"), again[1].get("content-disposition"), again[1].get("content-type")],
          ["secret=1", None, "inline", first[1].get("content-type")])
    check(f"{framework}: a bare key is the same key", service.send(key, {"reference": reference})[2], first[2])
    check(f"{framework}: JSON is compared by value", service.send(key, f'{{ "reference" : "{reference}" }}')[2], first[2])
    for what, changed in {"body": {"body": {"reference": new()}}, "query": {"path": "/payments?dry=1"}, "method": {"method": "PATCH"},
                          "route": {"path": "/payments/5"}, "content type": {"kind": "text/plain"}}.items():
        check(f"{framework}: mismatch by {what}", service.send(key, **{"body": {"reference": reference}, **changed})[0], 422)
    refused = service.send(key, {"reference": new()})
    check(f"{framework}: problem details", [refused[1]["content-type"], json.loads(refused[2])["code"], "link" in refused[1]],
          ["application/problem+json", "idempotency_mismatch", True])
    check(f"{framework}: two accounts with one key", [service.send(key, {"reference": reference}, account="two")[0],
                                                      count(reference, "two")], [201, 1])
    check(f"{framework}: nobody's key", service.send(key, {"reference": reference}, account=None)[0], 401)
    check(f"{framework}: no key", service.send(None, {"reference": reference})[0], 400)
    check(f"{framework}: bad keys", [service.send(bad, {})[0] for bad in ('"a', "a b", "k" * 256, "a,b")], [400] * 4)

    key = new()
    numbers = [service.send(key, f'{{"amount": {n}}}')[0] for n in (9007199254740993, 9007199254740993, 9007199254740992)]
    check(f"{framework}: numbers beyond 2^53 stay apart", numbers, [201, 201, 422])
    for name, text in {"NUL": r"a\u0000b", "a lone surrogate": r"\ud83d"}.items():
        key = new()
        codes = [service.send(key, f'{{"reference": "{text}"}}')[0] for _ in range(2)]
        check(f"{framework}: {name} is 400, and nothing is kept", [codes, stored(key)], [[400, 400], 0])
    key = new()
    check(f"{framework}: other bodies are compared by their bytes",
          [service.send(key, body, kind="text/plain")[0] for body in ("a", "a", "b")], [201, 201, 422])
    key = new()
    check(f"{framework}: an empty body is compared", [service.send(key, body, kind="text/plain")[0] for body in ("", "", "a")],
          [201, 201, 422])

    for what, codes, kept in [("429 once", [429, 201], 1), ("500 once", [500, 201], 1), ("402", [402, 402], 1), ("303", [303, 303], 1),
                              ("large", [201, 201], 1), ("timeout", [503, 503], 0), ("raise", [500, 500], 0)]:
        key, reference = new(), new()
        said = [service.send(key, {"reference": reference, "do": what}) for _ in range(2)]
        works = 0 if what in ("402", "timeout", "raise") else 1
        check(f"{framework}: {what}", [[one[0] for one in said], stored(key), count(reference)], [codes, kept, works])
        if kept and what not in ("429 once", "500 once"):
            check(f"{framework}: {what}, the same bytes and place",
                  [said[0][2] == said[1][2], said[0][1].get("location") == said[1][1].get("location")], [True, True])
        if what == "timeout":
            check(f"{framework}: 503 says when to retry", said[0][1].get("retry-after"), "1")

    key, reference = new(), new()
    answers = []
    with psycopg.connect("") as holder:
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        thread = threading.Thread(target=lambda: answers.append(service.send(key, {"reference": reference, "do": "wait"})))
        thread.start()
        wait_for("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted)")
        busy = service.send(key, {"reference": reference, "do": "wait"})
    thread.join()
    check(f"{framework}: concurrent retry", [busy[0], busy[1].get("retry-after"), answers[0][0], count(reference)],
          [409, "1", 201, 1])


def refusals(framework):
    """What only claims, and settings, bring about."""
    with Running(framework, PGOPTIONS="-c idempotency.max_response_size=1kB") as service:
        key, reference = str(uuid.uuid4()), str(uuid.uuid4())
        large = service.send(key, {"reference": reference, "do": "large"})
        check(f"{framework}: a response too large to keep is 500 without a hint to retry, and the work is undone",
              [large[0], large[1].get("retry-after"), count(reference), stored(key)], [500, None, 0, 0])
        DB.execute("SELECT idempotent_begin('ietf one', %s, lease => '1 hour')", [key])
        busy = service.send(key, {"reference": reference})
        check(f"{framework}: under somebody's lease", [busy[0], int(busy[1]["retry-after"]) > 3000], [409, True])
        DB.execute("SELECT idempotent_park('ietf one', %s, 1, 'who knows')", [key])
        parked = service.send(key, {"reference": reference})
        check(f"{framework}: parked", [parked[0], json.loads(parked[2])["code"], parked[1].get("retry-after"), count(reference)],
              [423, "idempotency_parked", None, 0])


def calls(key):
    """How often each step was called, and under how many keys."""
    rows = DB.execute("SELECT step, count(*), count(DISTINCT derived) FROM calls WHERE key = %s GROUP BY step ORDER BY step", [key])
    return [list(row) for row in rows]


def steps(framework):
    """Under lease: a step that was recorded is not called again, and its key is the same on every attempt."""
    new = lambda: str(uuid.uuid4())     # noqa: E731
    with Running(framework, LEASE="60s") as service:
        for what, codes, made in [("", [201, 201], [["charge", 1, 1], ["ship", 1, 1]]),
                                  ("step fails once", [500, 201, 201], [["charge", 1, 1], ["ship", 2, 1]]),
                                  ("step is unknown", [423, 423], [["charge", 1, 1], ["ship", 1, 1]]),
                                  ("step is unknown and caught", [423, 423], [["charge", 1, 1], ["ship", 1, 1]]),
                                  ("402", [402, 402], [["charge", 1, 1], ["ship", 1, 1]])]:
            key, reference = new(), new()
            said = [service.send(key, {"reference": reference, "do": what}) for _ in codes]
            check(f"{framework}: lease, {what or 'all goes well'}", [[one[0] for one in said], calls(key), count(reference)], [codes, made, 1])
            if codes[-1] == 201:
                check(f"{framework}: lease, {what or 'all goes well'}, the steps' results and the replay",
                      [json.loads(said[-2][2]), said[-1][1].get("idempotency-replayed")], [[{"done": "charge"}, {"done": "ship"}], "true"])
        key, reference = new(), new()
        said = [service.send(key, {"reference": reference, "do": "step fails until later"}) for _ in range(2)]
        check(f"{framework}: lease, a step that fails may say when the next attempt is due",
              [said[0][0], said[1][0], int(said[1][1].get("retry-after", 0)) > 3000], [500, 409, True])
    key, reference = new(), new()
    body = {"reference": reference, "do": "step is killed once"}
    with Running(framework, LEASE="1s") as service:
        check(f"{framework}: lease, killed in a step", service.send(key, body)[0], None)
        service.process.wait()
    with Running(framework, LEASE="60s") as service:
        codes = set()
        while 201 not in codes and len(codes) < 3:
            codes.add(service.send(key, body)[0])
            time.sleep(0.05)
        check(f"{framework}: lease, the attempt after it goes on behind the recorded step",
              [codes - {409}, calls(key), count(reference)], [{201}, [["charge", 1, 1], ["ship", 2, 1]], 1])


ASKS = {"Prefer": "respond-async, wait=10"}
BUSY = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted)"


def later(framework):
    """202 with a status resource: the work goes on when its client has its response."""
    new = lambda: str(uuid.uuid4())     # noqa: E731
    with Running(framework, LEASE="60s", STATUS="/operations") as service:
        def order(key, reference, do, **more):
            return service.send(key, {"reference": reference, "do": do}, **more)

        def poll(location, **more):
            return service.send(None, path=location, method="GET", **more)

        def end_of(location):
            deadline = time.monotonic() + 30
            while True:
                said = poll(location)
                if said[0] != 202 or time.monotonic() > deadline:
                    return said
                time.sleep(0.01)

        key, reference = new(), new()
        with psycopg.connect("") as holder:
            holder.execute("SELECT pg_advisory_xact_lock(4711)")
            first = order(key, reference, "wait", **ASKS)
            location = first[1].get("location", "/")
            check(f"{framework}: 202 at once", [first[0], first[1].get("preference-applied"), first[1].get("retry-after"), location[:12]],
                  [202, "respond-async", "2", "/operations/"])
            wait_for(BUSY)
            meanwhile = poll(location)
            check(f"{framework}: 202 while the work goes on", [meanwhile[0], json.loads(meanwhile[2]), meanwhile[1].get("retry-after")],
                  [202, {"status": "in_progress", "checkpoint": "charge"}, "2"])
            again = order(key, reference, "wait", **ASKS)
            check(f"{framework}: 202 to a retry", [again[0], again[1].get("location")], [202, location])
            check(f"{framework}: 409 to a retry that does not ask for it", order(key, reference, "wait")[0], 409)
            check(f"{framework}: 202, mismatch", order(key, new(), "wait", **ASKS)[0], 422)
        done, replay = end_of(location), order(key, reference, "wait", **ASKS)
        check(f"{framework}: 202, then the stored response", [done[0], json.loads(done[2]), done[1].get("location")],
              [201, [{"done": "charge"}, {"done": "ship"}], "/orders/7"])
        check(f"{framework}: 202, the replay", [replay[0], replay[2] == done[2], replay[1].get("idempotency-replayed"), calls(key), count(reference)],
              [201, True, "true", [["charge", 1, 1], ["ship", 1, 1]], 1])
        check(f"{framework}: 202, HEAD tells the same without the body", service.head(location), (201, [str(len(done[2]))], b""))
        others = [poll(location, account="two")[0], *(poll(path)[0] for path in ("/operations/nothing", "/operations/bnVsbA", location + "x"))]
        check(f"{framework}: another account and another name find nothing", others, [404] * 4)
        check(f"{framework}: nobody's operation", poll(location, account=None)[0], 401)
        waited = order(new(), new(), "")
        check(f"{framework}: without the preference the client waits", [waited[0], json.loads(waited[2])], [201, [{"done": "charge"}, {"done": "ship"}]])

        key, reference = new(), new()
        location = order(key, reference, "step fails once", **ASKS)[1]["location"]
        failed = end_of(location)
        check(f"{framework}: work that failed shows as interrupted",
              [failed[0], json.loads(failed[2])["code"], failed[1].get("retry-after")], [409, "idempotency_interrupted", None])
        again = order(key, reference, "step fails once", **ASKS)
        check(f"{framework}: interrupted work is sent again", [again[0], end_of(location)[0], count(reference)], [202, 201, 1])
        for do, code in (("step is unknown", 423), ("402", 402)):
            ended = end_of(order(new(), new(), do, **ASKS)[1]["location"])
            check(f"{framework}: 202, {do}, shows as {code}", ended[0], code)
        check(f"{framework}: 202, the connection serves the next request", [order(new(), new(), "", **ASKS)[0] for _ in range(5)], [202] * 5)
        with psycopg.connect("") as holder:
            holder.execute("SELECT pg_advisory_xact_lock(4711)")
            polls(framework, service, holder)

        key, reference = new(), new()
        with psycopg.connect("") as holder:
            holder.execute("SELECT pg_advisory_xact_lock(4711)")
            location = order(key, reference, "wait", **ASKS)[1]["location"]
            wait_for(BUSY)
            service.process.kill()
            service.process.wait()
    DB.execute("UPDATE idempotency_claims SET lease_until = now() - interval '1 second' WHERE key = %s", [key])
    with Running(framework, LEASE="60s", STATUS="/operations") as service:
        check(f"{framework}: work whose process died shows as interrupted", poll(location)[0], 409)
        order(key, reference, "", **ASKS)
    with Running(framework, LEASE="60s", STATUS="/operations", PGPORT="1") as service:
        check(f"{framework}: a database that is down is 503 for the status resource as well", poll(location)[0], 503)
    with Running(framework, "stripe", LEASE="60s", STATUS="/operations", RESPOND_ASYNC="yes") as service:
        said = order(new(), new(), "")
        check(f"{framework}: respond_async: 202 without a preference",
              [said[0], said[1].get("preference-applied"), said[1].get("request-id", "")[:4]], [202, None, "req_"])
        check(f"{framework}: respond_async: without a key there is nothing to poll", order(None, new(), "")[0], 201)
        done = end_of(said[1]["location"])
        check(f"{framework}: the Stripe profile decorates the status resource", [done[0], done[1].get("idempotent-replayed")], [201, "true"])


def events(framework):
    """What on_event is told. packages/node passes the same cases."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "events.json")) as file:
        cases = json.load(file)
    for case in cases:
        path, suffix = os.path.join(os.environ["SCRATCH"], f"{uuid.uuid4()}.events"), str(uuid.uuid4())
        lease = {"LEASE": "60s", "STATUS": "/operations"} if case.get("lease") else {}
        if case.get("claimed"):
            DB.execute("SELECT idempotent_begin('ietf one', %s, lease => '1 hour')", [f"k {suffix}"])
        with Running(framework, case.get("profile", "ietf"), EVENTS=path, **lease) as service:
            location = "/operations/nothing"
            for asked in case["requests"]:
                key = f'"{asked["key"]} {suffix}"' if "key" in asked else asked.get("header")
                body = {"reference": asked.get("body", ""), "do": asked.get("do")}
                said = service.send(key, None if asked.get("poll") else body, location if "poll" in asked else "/payments",
                                    "GET" if "poll" in asked else "POST", asked.get("account", "one"),
                                    **(ASKS if asked.get("later") else {}))
                location = said[1].get("location", location)
                while said[0] == 202 and stored(f"k {suffix}") == 0:
                    time.sleep(0.01)
        with open(path) as file:
            told = [json.loads(line) for line in file]
        check(f"{framework}: events, {case['name']}", [{**one, **({"key": one["key"].split()[0]} if "key" in one else {})} for one in told],
              case["events"])


def polls(framework, service, holder):
    """The package's own client, while the work waits for the holder of the gate."""
    sys.path.insert(0, os.environ["SITE"])
    from idempotency_postgres.client import Client
    waits = []

    def sleep(wait):
        waits.append(wait)
        holder.rollback()
    made = Client({}, sleep=sleep, clock=lambda: sum(waits))
    made.prepare("order", "POST", f"http://127.0.0.1:{service.port}/payments", json.dumps({"reference": "polled", "do": "wait"}),
                 {"X-Account": "one", "Content-Type": "application/json", **ASKS})
    done = made.run("order")
    check(f"{framework}: the client polls", [done.state, done.status, done.attempts, set(waits)], ["done", 201, 1, {2.0}])


def client_gone(framework):
    """The client goes while the handler works: its retry gets the response."""
    key, reference = str(uuid.uuid4()), str(uuid.uuid4())
    body = json.dumps({"reference": reference, "do": "wait"})
    with Running(framework) as service:
        with psycopg.connect("") as holder:
            holder.execute("SELECT pg_advisory_xact_lock(4711)")
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(f"POST /payments HTTP/1.1\r\nHost: a\r\nX-Account: one\r\nIdempotency-Key: {key}\r\n"
                               f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                wait_for("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted)")
        wait_for("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
                 " AND backend_type = 'client backend')")
        check(f"{framework}: the client has gone, its retry is charged once",
              [service.send(key, body)[0], count(reference)], [201, 1])


def crashes(framework):
    for what, kept in (("die before", 0), ("die after", 1)):
        key, reference = str(uuid.uuid4()), str(uuid.uuid4())
        body = {"reference": reference, "do": what}
        with Running(framework) as service:
            check(f"{framework}: killed {what[4:]} COMMIT, no answer", service.send(key, body)[0], None)
            service.process.wait()
        wait_for("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
                 " AND backend_type = 'client backend')")
        check(f"{framework}: killed {what[4:]} COMMIT, kept", [stored(key), count(reference)], [kept, kept])
        if kept:
            with Running(framework) as service:
                check(f"{framework}: killed after COMMIT, the retry gets the response",
                      [service.send(key, body)[0], count(reference)], [201, 1])


def unusable(framework):
    key = str(uuid.uuid4())
    with Running(framework, PGPORT="1") as service:
        check(f"{framework}: database down", service.send(key, {"reference": key})[0], 503)
    with Running(framework, PGOPTIONS="-c default_transaction_read_only=on", READONLY="yes") as service:
        check(f"{framework}: read-only", [service.send(key, {"reference": key})[0], stored(key)], [503, 0])


def control(*arguments):
    subprocess.run(["pg_ctl", "-s", "-w", *arguments], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def stopped(framework):
    """The server is stopped while the handler works, and started again."""
    global DB
    key, reference = str(uuid.uuid4()), str(uuid.uuid4())
    body, answers = {"reference": reference, "do": "wait"}, []
    with Running(framework) as service:
        holder = psycopg.connect("")
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        thread = threading.Thread(target=lambda: answers.append(service.send(key, body)))
        thread.start()
        wait_for(BUSY)
        control("stop", "-m", "immediate")
        try:
            thread.join()
            meanwhile = service.send(key, body)
        finally:
            control("start", "-l", os.path.join(os.environ["SCRATCH"], "restarted.log"))
            DB = psycopg.connect("", autocommit=True)
        check(f"{framework}: a server that is stopped at work", [answers[0][0], meanwhile[0], meanwhile[1].get("retry-after")], [503, 503, "1"])
        check(f"{framework}: once it runs again the retry does the work once",
              [[service.send(key, body)[0] for _ in range(2)], count(reference)], [[201, 201], 1])


def profiles(framework):
    with Running(framework, "stripe") as service:
        key = str(uuid.uuid4())
        form = "application/x-www-form-urlencoded"
        first = service.send(key, "amount=1&do=500+once", kind=form)
        again = service.send(key, "do=500+once&amount=1", kind=form)
        check(f"{framework}: stripe keeps the handler's 500", [first[0], again[0], again[1].get("idempotent-replayed")],
              [500, 500, "true"])
        check(f"{framework}: stripe tells its clients not to repeat a kept 500", again[1].get("stripe-should-retry"), "false")
        check(f"{framework}: stripe echoes the key and names the requests",
              [again[1].get("idempotency-key"), again[1].get("original-request")], [key, first[1].get("request-id")])
        key = str(uuid.uuid4())
        timeout = [service.send(key, "do=timeout", kind=form) for _ in range(2)]
        check(f"{framework}: stripe never keeps the database's error",
              [[one[0] for one in timeout], timeout[0][1].get("stripe-should-retry"), stored(key)], [[503, 503], "true", 0])
        check(f"{framework}: stripe runs a request without a key", service.send(None, "amount=1", kind=form)[0], 201)
        mismatch = service.send(first[1]["idempotency-key"], "amount=2", kind=form)
        check(f"{framework}: stripe's mismatch", [mismatch[0], json.loads(mismatch[2])["error"]["type"]], [400, "idempotency_error"])
    with Running(framework, "stripe_v2") as service:
        key = str(uuid.uuid4())
        check(f"{framework}: stripe v2 executes a failed request again",
              [service.send(key, {"do": "500 once"})[0] for _ in range(3)], [500, 201, 201])
        days = DB.execute("SELECT (expires_at - finished_at) BETWEEN '30 days' AND '31 days' FROM idempotency_keys WHERE key = %s", [key])
        check(f"{framework}: stripe v2 keeps for 30 days", days.fetchone()[0], True)
    with Running(framework, "toss") as service:
        key = str(uuid.uuid4())
        said = [service.send(key, {"amount": n}) for n in (1, 2)]
        check(f"{framework}: toss compares nothing", [said[0][0], said[1][2] == said[0][2]], [201, True])
        check(f"{framework}: toss keeps URLs apart", service.send(key, {"amount": 1}, path="/payments?a=1")[2] == said[0][2], False)


class Lossy:
    """A line in front of a service that delivers the first request of each pair and loses its reply."""

    def __init__(self, port):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.target, self.lost, self.turn, self.loses = port, 0, 0, True
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            client, _ = self.server.accept()
            threading.Thread(target=self.pass_on, args=(client,), daemon=True).start()

    def pass_on(self, client):
        """One exchange a connection: the request as it is, the reply with Connection: close, or a reset instead of it."""
        with client, socket.create_connection(("127.0.0.1", self.target)) as service:
            data = b""
            while b"\r\n\r\n" not in data:
                data += client.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
            while len(body) < length:
                body += client.recv(65536)
            service.sendall(b"\r\n".join(lines + [b"Connection: close"]) + b"\r\n\r\n" + body)
            reply = b"".join(iter(lambda: service.recv(65536), b""))
            self.turn += 1
            if self.loses and self.turn % 2:
                self.lost += 1
                return
            client.sendall(reply)


def official_client(framework):
    import stripe
    with Running(framework, "stripe") as service:
        line = Lossy(service.port)
        stripe.api_base, stripe.api_key = f"http://127.0.0.1:{line.port}", "sk_test_one"
        stripe.max_network_retries = 3
        stripe.util.convert_to_stripe_object.__globals__.setdefault("stripe", stripe)
        stripe.http_client.HTTPClient.INITIAL_DELAY = stripe.http_client.HTTPClient.MAX_DELAY = 0.01
        stripe.default_http_client = stripe.http_client.RequestsClient(session=Accounted())
        numbers, references = [], []
        for _ in range(3):
            references.append(str(uuid.uuid4()))
            charge = stripe.Charge.create(amount=5, currency="eur", reference=references[-1])
            numbers.append(charge.id)
            check(f"{framework}: stripe-python knows its key and the request",
                  [bool(charge.last_response.idempotency_key), charge.last_response.request_id[:4]], [True, "req_"])
        check(f"{framework}: stripe-python through a lossy line, each charge once",
              [len(set(numbers)), [count(reference) for reference in references], line.lost], [3, [1, 1, 1], 3])
        line.loses, before = False, line.turn
        try:
            stripe.Charge.create(amount=5, currency="eur", do="500 once")
        except stripe.error.APIError if hasattr(stripe, "error") else stripe.APIError as error:
            check(f"{framework}: stripe-python does not repeat a kept 500", [error.http_status, line.turn - before], [500, 1])
        else:
            check(f"{framework}: stripe-python does not repeat a kept 500", "succeeded", "failed")


def Accounted():
    import requests
    session = requests.Session()
    session.headers["X-Account"] = "one"
    return session


def client(framework):
    """The package's own client against the same line."""
    sys.path.insert(0, os.environ["SITE"])
    from idempotency_postgres.client import Client, FileStorage
    path = os.path.join(os.environ["SCRATCH"], f"{uuid.uuid4()}.json")
    waits, reference = [], str(uuid.uuid4())
    with Running(framework) as service:
        line = Lossy(service.port)
        make = lambda: Client(FileStorage(path), sleep=waits.append, clock=lambda: sum(waits))     # noqa: E731
        headers = {"X-Account": "one", "Content-Type": "application/json"}
        operation = make().prepare("pay", "POST", f"http://127.0.0.1:{line.port}/payments", json.dumps({"reference": reference}), headers)
        check(f"{framework}: the client keeps its key over a restart",
              make().prepare("pay", "POST", "elsewhere").key, operation.key)
        done = make().run("pay")
        check(f"{framework}: the client retries after a minute, and is charged once",
              [done.state, done.status, done.attempts, waits, count(reference)], ["done", 201, 2, [60.0], 1])
    check(f"{framework}: nothing is left", make().left(), [])


def client_alone():
    sys.path.insert(0, os.environ["SITE"])
    from idempotency_postgres.client import Client

    def through(answers, **options):
        waits, keys = [], set()

        def transport(method, url, headers, body, timeout):
            keys.add(headers["Idempotency-Key"])
            answer = answers.pop(0)
            if answer is None:
                raise ConnectionResetError
            return answer
        made = Client({}, transport=transport, sleep=waits.append, clock=lambda: sum(waits), **options)
        made.prepare("a", "POST", "http://a", "{}")
        return made.run("a"), waits, len(keys), made
    lost = [None] * 9
    operation, waits, keys, made = through(lost[:])
    check("client: 1, 2, 4, 8 minutes, one key, then left", [waits, keys, operation.state, [left.name for left in made.left()]],
          [[60, 120, 240, 480], 1, "left", ["a"]])
    check("client: Retry-After is a minimum", through([(503, {"Retry-After": "300"}, b""), (201, {}, b"")])[1], [300])
    check("client: it waits longer than a short Retry-After", through([(409, {"retry-after": "1"}, b""), (201, {}, b"")])[1], [60])
    check("client: base, cap and full jitter", through(lost[:], base=1, cap=4, jitter=1, chance=lambda: 0.5, budget=5)[1], [0.5, 1, 2, 2])
    check("client: it ends before the key expires", [through(lost[:], retention=200)[0].attempts], [2])
    check("client: a final answer is not repeated", [through([(status, {}, b"")])[0].state for status in (201, 400, 402, 412, 422)],
          ["done"] * 5)
    check("client: what only somebody can settle is left at once", [through([(423, {"Stripe-Should-Retry": "false"}, b"")])[0].state], ["left"])
    accepted = (202, {"Location": "/operations/7", "Preference-Applied": "respond-async", "Retry-After": "3"}, b"")
    operation, waits, keys, made = through([accepted, (202, {"Retry-After": "5"}, b""), (201, {}, b"")])
    check("client: the status resource is polled as often as it says", [waits, operation.status, operation.attempts], [[3, 5], 201, 1])
    for name, answer in {"lost": None, "unknown": (404, {}, b""), "interrupted": (409, {}, b"")}.items():
        operation, waits, keys, made = through([accepted, answer, (201, {}, b"")])
        check(f"client: a poll that is {name}, and the request is sent again", [operation.status, operation.attempts, keys], [201, 2, 1])
    check("client: 202 without a status resource is final", through([(202, {}, b"")])[0].state, "done")
    elsewhere = (202, {**accepted[1], "Location": "http://b/operations/7"}, b"")
    check("client: a status resource of another origin gets nothing", through([elsewhere, (201, {}, b"")])[0].attempts, 2)
    check("client: no poll once the key may have expired",
          through([accepted] + [(202, {"Retry-After": "30"}, b"")] * 9, retention=200)[0].state, "left")
    check("client: a kept 500 is not repeated", through([(500, {"Stripe-Should-Retry": "false"}, b"")])[0].state, "done")


def sqlstates():
    """The status of each SQLSTATE, and Retry-After where a retry may help. packages/node passes the same table."""
    sys.path.insert(0, os.environ["SITE"])
    from idempotency_postgres.core import problem_of
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "sqlstates.json")) as file:
        wanted = json.load(file)
    got = {}
    for state in wanted:
        error = Exception("expected by the test")
        error.sqlstate = state
        about = problem_of(error)
        got[state] = about.status if (about.retry_after is None) == (about.status not in (409, 503)) else f"Retry-After {about.retry_after}"
    check("the status of each SQLSTATE", got, wanted)


def going_on():
    """What a process does with work behind a 202 when it is about to end."""
    sys.path.insert(0, os.environ["SITE"])
    from idempotency_postgres import ietf as profile
    from idempotency_postgres.later import go_on
    options, gate = profile(account=str, lease="60s", status="/operations"), threading.Event()
    go_on(options, gate.wait)
    busy = options.idle(0.01)
    gate.set()
    check("idle waits for the work behind a 202", [busy, options.idle(30)], [False, True])
    try:
        profile(account=str, status="/operations")
    except ValueError as error:
        check("a status resource needs a lease", type(error), ValueError)
    else:
        check("a status resource needs a lease", "accepted", "refused")


for framework in FRAMEWORKS:
    with Running(framework) as running:
        ietf(framework, running)
    unusable(framework)
for framework in FRAMEWORKS:
    crashes(framework)
    client_gone(framework)
    stopped(framework)
    steps(framework)
    later(framework)
going_on()
sqlstates()
events("starlette-asyncpg")
refusals("flask-psycopg2")
profiles("starlette-asyncpg")
profiles("flask-psycopg2")
profiles("django-middleware")
official_client("flask-psycopg2")
client("starlette-asyncpg")
client_alone()
print("done")
