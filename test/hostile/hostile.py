#!/usr/bin/env python3
#
# Hostile use by roles without privileges: garbage to every function, names that should capture, doors that are locked.
#
#   hostile.py [--minutes N] [--seed N]
#
# A role that may call every function, and has no other right, calls them with every kind of garbage, in every kind of
# transaction, from several sessions at once; half of these have a search_path of their own in front of everything, full
# of operators and functions that would tell if anyone else ran them. Then sqlsmith does the same in queries of its own,
# if it is installed. Then both again as an administrator, who may call the functions that read and change everybody's keys
# too. Found is a crash, an internal error, a name that was captured, a secret that was read or changed.
# PG_CONFIG names the installation to test. The last line is "N passed, N failed".

import argparse
import collections
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "faults"))

import cluster as cluster_module    # noqa: E402
import pq                           # noqa: E402

# What nobody may read, and what stands in the keys of others, which an administrator may.
SECRET = "the-secret-of-the-owner"
ANSWER = "the-answer-to-the-owner"
WORKER, ADMINISTRATOR = "granted", "administrator"
SESSIONS = 4

# The names of our functions' own internals: an operator or function of theirs that resolved through search_path would
# be one of these.
SETUP = """
CREATE SCHEMA idem;
CREATE EXTENSION idempotency SCHEMA idem;
CREATE ROLE granted LOGIN;
CREATE ROLE administrator LOGIN;
CREATE ROLE stranger LOGIN;
GRANT USAGE ON SCHEMA idem TO granted, administrator, stranger;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA idem TO granted, administrator;
-- An administrator's functions read and change everybody's keys: that is their work, and not a leak.
REVOKE EXECUTE ON FUNCTION idem.idempotent_forget, idem.idempotent_forget_scope, idem.idempotent_lookup,
	idem.idempotent_reconcile, idem.idempotent_resolve, idem.idempotent_retry, idem.idempotent_resume FROM granted;
CREATE SCHEMA secret;
GRANT USAGE ON SCHEMA secret TO PUBLIC;
CREATE TABLE secret.vault AS SELECT n AS id, '{secret}-' || n AS word FROM generate_series(1, 100) AS n;
INSERT INTO idem.idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
	SELECT md5(n::text)::uuid, 'owner', 'hidden ' || n, 1, '"{answer}"', now(), now(), now() + '1 day'
	FROM generate_series(1, 10) AS n;
CREATE SCHEMA mallory AUTHORIZATION granted;
GRANT ALL ON SCHEMA mallory TO administrator;
-- Whom sqlsmith asks which functions there are: ours, returning no set, and some of PostgreSQL's.
CREATE SCHEMA smith;
GRANT USAGE ON SCHEMA smith TO granted, administrator;
CREATE VIEW smith.pg_proc AS
	SELECT oid, proname, pronamespace, prorettype, proargtypes, false AS proretset, prokind FROM pg_catalog.pg_proc
	WHERE pronamespace = 'idem'::regnamespace OR pronamespace = 'pg_catalog'::regnamespace AND oid::bigint % 25 = 0
	AND NOT proretset;
GRANT SELECT ON smith.pg_proc TO granted, administrator;
CREATE TABLE mallory.idempotency_keys (LIKE idem.idempotency_keys);
CREATE TABLE mallory.idempotency_claims (LIKE idem.idempotency_claims);
-- Something of each type that our functions take.
CREATE TABLE mallory.things AS SELECT 'scope ' || n AS scope, 'key ' || n AS key, jsonb_build_array(n) AS request,
	sha256(n::text::bytea) AS digest, n * interval '1 s' AS span, now() + n * interval '1 h' AS at, n AS number,
	n::bigint AS wide, n / 4.0::float8 AS share, n > 2 AS flag, ARRAY['a', n::text] AS list, 'SELECT ' || n AS command
	FROM generate_series(0, 4) AS n;
GRANT ALL ON ALL TABLES IN SCHEMA mallory TO PUBLIC;
CREATE TABLE public.captured (who text, how text);
GRANT SELECT, INSERT ON public.captured TO PUBLIC;
"""
SETTINGS_OF_ROLE = """
ALTER ROLE {role} SET statement_timeout = '2s';
ALTER ROLE {role} SET lock_timeout = '200ms';
ALTER ROLE {role} SET idle_in_transaction_session_timeout = '30s';
"""

# Whoever runs one of these as someone else than its owner has been captured.
TRAP = """
CREATE FUNCTION mallory.spring(how text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	IF current_user NOT IN ('granted', 'administrator') THEN
		INSERT INTO public.captured VALUES (current_user, how);
	END IF;
END $$;
"""
TRAP_OPERATOR = """
CREATE FUNCTION mallory.{name}({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM mallory.spring('{left} {op} {right}'); RETURN true; END $$;
CREATE OPERATOR mallory.{op} (FUNCTION = mallory.{name}, LEFTARG = {left}, RIGHTARG = {right});
"""
TRAP_FUNCTION = """
CREATE FUNCTION mallory.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$
BEGIN PERFORM mallory.spring('{name}'); RETURN pg_catalog.{name}({passed}); END $$;
"""


def traps():
    yield TRAP
    number = 0
    for left, right in (("uuid", "uuid"), ("text", "text"), ("timestamptz", "timestamptz"), ("bytea", "bytea"),
                        ("jsonb", "jsonb"), ("bigint", "bigint"), ("integer", "integer"), ("oid", "oid"),
                        ("name", "name"), ("tid", "tid"), ("interval", "interval"), ("uuid", "uuid[]")):
        for op in ("=", "<", "<=", ">", ">=", "<>", "||", "-", "+", "@>"):
            number += 1
            yield TRAP_OPERATOR.format(name=f"op{number}", op=op, left=left, right=right)
    for name, arguments, passed, result in (
            ("now", "", "", "timestamptz"), ("clock_timestamp", "", "", "timestamptz"),
            ("lower", "text", "$1", "text"), ("left", "text, integer", "$1, $2", "text"),
            ("to_jsonb", "jsonb", "$1", "jsonb"), ("array_length", "uuid[], integer", "$1, $2", "integer"),
            ("current_database", "", "", "name"), ("gen_random_uuid", "", "", "uuid")):
        yield TRAP_FUNCTION.format(name=name, arguments=arguments, passed=passed, result=result)
    yield "CREATE TYPE mallory.jsonb AS (a text); CREATE DOMAIN mallory.uuid AS text CHECK (false);"


# --- garbage ---

KEYS = ["k1", "k2", "k3", "a key with spaces", "O'Neil", "\U0001F4B6 ключ", "%s%n%x", "$1", "\\", '"; DROP TABLE x']

COMMANDS = [
    "", ";", "SELECT 1", "SELECT 1; SELECT 2", "SELECT $1", "SELECT $1::integer", "SELECT $2", "SELECT $999", "SELECT",
    "SELECT 1/0", "SELECT 'NaN'::float8", "SELECT 'infinity'::timestamptz", "SELECT ROW(1, NULL)", "SELECT NULL",
    "SELECT ARRAY[1, 2]", "SELECT generate_series(1, 3)", "SELECT repeat('x', 3000000)", "SELECT pg_sleep(0.01)",
    "SELECT 1 WHERE false", "SELECT 1 AS a, 2 AS a, 3", "SELECT ''::bytea", "TABLE secret.vault", "VALUES (1)",
    "SELECT * FROM idem.idempotency_keys", "DELETE FROM idem.idempotency_keys", "SELECT pg_read_file('PG_VERSION')",
    "UPDATE secret.vault SET word = ''", "INSERT INTO secret.vault VALUES (0, '')", "TRUNCATE secret.vault",
    "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO SAVEPOINT s", "RELEASE s", "PREPARE TRANSACTION 'x'",
    "COPY mallory.t TO STDOUT", "COPY mallory.t FROM STDIN", "COPY mallory.t TO PROGRAM 'true'", "VACUUM",
    "LISTEN x", "NOTIFY x", "SET ROLE postgres", "RESET ROLE", "SET SESSION AUTHORIZATION postgres",
    "RESET SESSION AUTHORIZATION", "DISCARD ALL", "DISCARD PLANS", "SET search_path = mallory", "RESET ALL",
    "PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE ALL", "DECLARE c CURSOR FOR SELECT 1", "FETCH c", "CLOSE ALL",
    "CREATE TABLE mallory.t (a integer)", "DROP TABLE IF EXISTS mallory.t", "CREATE TEMP TABLE t (a integer)",
    "CREATE INDEX CONCURRENTLY ON mallory.t (a)", "INSERT INTO mallory.t VALUES (1) RETURNING a",
    "ALTER TABLE mallory.t ADD b text", "LOCK TABLE mallory.t", "EXPLAIN SELECT 1", "SHOW ALL", "SHOW search_path",
    "SELECT pg_terminate_backend(pg_backend_pid())", "DO $$ BEGIN COMMIT; END $$", "DO $$ BEGIN RAISE 'x'; END $$",
    "DO $$ BEGIN RAISE SQLSTATE 'XY123'; END $$", "CALL mallory.commits()", "SELECT mallory.deep(1)",
    "DROP EXTENSION idempotency", "DROP SCHEMA mallory", "SELECT set_config('search_path', 'mallory', false)",
    "SELECT idem.idempotent_call('s', 'k1', 'SELECT 1')", "SELECT idem.idempotent_begin('s', 'k1')",
    "SELECT idem.idempotent_call('s', 'k2', 'SELECT idem.idempotent_call(''s'', ''k3'', ''SELECT 1/0'')')",
    "SELECT idem.idempotent_finish('s', 'k1')", "SELECT idem.idempotent_release('s', 'k1')",
    "SELECT idem.idempotent_forget('s', 'k1')", "SELECT idem.idempotent_prune()", "SELECT idem.idempotent_resume('1s')",
    "CREATE FUNCTION mallory.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT nextval('mallory.none')",
]

JSON = ["null", "1", "1.00", "1e400", "-0", "true", '""', "[]", "{}", '[[]]', '{"a": {"b": [1, null, "x"]}}', "[1]",
        '[null, null]', '["k", 2]', '{"\\u0001": "\\u00e4"}', "[" * 300 + "]" * 300, "[" * 20000 + "]" * 20000,
        "[" + "1," * 5000 + "1]", '"' + "x" * 200000 + '"', "[1, 2", '"\\u0000"', "1" * 2000, "NaN",
        '{"a": 1, "a": 2}', '{"x": ' * 100 + "1" + "}" * 100]

POOLS = {
    "text": [None, "", " ", "s", "other", "owner", "hidden 1", "x" * 256, "x" * 1025, "x" * 70000, "é" * 255, *KEYS],
    "jsonb": [None, *JSON],
    "bytea": [None, "\\x", "\\x00", "\\xdeadbeef", "\\x" + "ab" * 32, "\\x" + "ab" * 64, "\\x" + "ab" * 65,
              "\\x" + "00" * 100000],
    "interval": [None, "0", "1 us", "-1 us", "1s", "100 ms", "-1 day", "1 day -24 hours", "1 mon -31 days", "infinity",
                 "178000000 years", "-178000000 years", "2147483647 months", "9223372036854775807 us", "1000000 years",
                 "294000 years", "2147483647 days", "-infinity"],
    "timestamptz": [None, "now", "infinity", "-infinity", "epoch", "294276-12-31", "4713-01-01 BC", "tomorrow",
                    "yesterday", "2000-01-01"],
    "integer": [None, "0", "1", "2", "-1", "2147483647", "-2147483648", "429", "200"],
    "bigint": [None, "0", "1", "-1", "9223372036854775807", "-9223372036854775808"],
    "double precision": [None, "0", "1", "0.5", "-1", "2", "NaN", "Infinity", "-Infinity", "1e308", "1e-320"],
    "boolean": [None, "t", "f"],
    "text[]": [None, "{}", "{NULL}", "{a}", "{a,a,a}", "{a,NULL,b}", '{""}', "{{a,b},{c,d}}", "[5:6]={x,y}",
               "{" + "x" * 1000 + "}", "{" + ",".join(f"m{n}" for n in range(150)) + "}",
               "{" + ",".join(f"m{n}" for n in range(3000)) + "}", "{k1,k2}", "{k2,k1}"],
}
NAMES = {"key": 3 * KEYS + ["", None, "x" * 256], "scope": 10 * ["s", "other"] + ["", None], "command": COMMANDS,
         "args": [None, None, "[]", "[1]", '["x"]', '[null, 2, {"a": 1}]', "{}", "1", "[" + "1," * 70000 + "1]"],
         "retention": [None, "1 day", "1s", "1 us"], "lease": [None, None, "1s", "1 ms", "1 day"],
         "attempt": [None, "1", "2", "3", "0"],
         "max_keys": [None, "0", "1", "-1", "5", "100", "2147483647"]}
POOLS["timestamp with time zone"] = POOLS["timestamptz"]

SETTINGS = [
    ("idempotency.retention", ["1 day", "1 us", "1s", "0", "-1", "infinity", "178000000 years", "nonsense", ""]),
    ("idempotency.max_key_length", ["1", "255", "65535", "0", "300"]),
    ("idempotency.max_response_size", ["0", "1", "100", "1GB", "-1"]),
    ("idempotency.key_time", ["on", "off", "maybe"]),
    ("DateStyle", ["ISO", "German", "SQL, DMY"]), ("IntervalStyle", ["iso_8601", "sql_standard", "postgres"]),
    ("TimeZone", ["UTC", "Asia/Kathmandu", "PST8PDT"]), ("bytea_output", ["hex", "escape"]),
    ("client_encoding", ["UTF8", "LATIN1", "SQL_ASCII"]), ("work_mem", ["64kB", "64MB"]),
    ("enable_indexscan", ["on", "off"]), ("enable_seqscan", ["on", "off"]), ("plan_cache_mode", ["auto",
     "force_generic_plan", "force_custom_plan"]), ("row_security", ["on", "off"]),
    ("quote_all_identifiers", ["on", "off"]),
    ("default_transaction_isolation", ["read committed", "repeatable read", "serializable"]),
    ("default_transaction_read_only", ["off", "off", "on"]), ("default_transaction_deferrable", ["on", "off"]),
    ("session_replication_role", ["replica"]), ("lo_compat_privileges", ["on"]), ("jit", ["off"]),
    ("force_parallel_mode", ["on", "off", "regress"]), ("debug_parallel_query", ["on", "off", "regress"]),
    ("standard_conforming_strings", ["on", "off"]), ("extra_float_digits", ["3", "-15"]),
]

SHAPES = [
    "SELECT * FROM {call}", "SELECT ({call}).*", "SELECT {call}", "SELECT {call}, {call}",
    "SELECT {call} FROM generate_series(1, 3)", "SELECT * FROM {call} AS x, {call} AS y",
    "SELECT count(*) FROM {call}", "COPY (SELECT * FROM {call}) TO STDOUT",
    "DECLARE c CURSOR FOR SELECT * FROM {call}; FETCH 1 FROM c; CLOSE c",
    "DECLARE d CURSOR WITH HOLD FOR SELECT * FROM {call}",
    "DO $do$ BEGIN PERFORM {call}; EXCEPTION WHEN OTHERS THEN NULL; END $do$",
    "DO $do$ BEGIN PERFORM {call}; PERFORM 1/0; EXCEPTION WHEN OTHERS THEN PERFORM {call}; END $do$",
    "DO $do$ BEGIN PERFORM {call}; COMMIT; PERFORM {call}; ROLLBACK; END $do$",
    "WITH x AS MATERIALIZED (SELECT * FROM {call}) SELECT * FROM x, x AS y",
    "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT * FROM {call}",
    "EXPLAIN ANALYZE SELECT * FROM {call}", "PREPARE q AS SELECT * FROM {call}; EXECUTE q; EXECUTE q; DEALLOCATE q",
    "SELECT 1 WHERE ({call}) IS NULL", "SELECT * FROM {call} WITH ORDINALITY LIMIT 0",
    "SELECT * FROM {call} FOR UPDATE",
]


def quote(value):
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


class Fuzzer(threading.Thread):
    """One session after another, each in its own mood."""

    def __init__(self, run, role, number, seed):
        super().__init__(name=f"{role} {number}", daemon=True)
        self.role = role
        self.secrets = [SECRET] if role == ADMINISTRATOR else [SECRET, ANSWER]
        self.hostile_run = run
        self.rng = random.Random(seed)
        self.tally = collections.Counter()
        self.history = collections.deque(maxlen=8)

    def run(self):
        while not self.hostile_run.enough.is_set():
            try:
                self.session()
            except pq.Lost as lost:
                self.tally["sessions lost"] += 1
                if not (lost.sqlstate or "").startswith(("57P", "25P")):
                    self.hostile_run.lost(self.name, lost, list(self.history))
                    time.sleep(0.5)
            except Exception:
                self.hostile_run.find("the test itself failed", traceback.format_exc())
                return

    def session(self):
        with self.hostile_run.connect(self.role) as conn:
            self.say(conn, "SET standard_conforming_strings = on")
            if self.rng.random() < 0.5:
                self.say(conn, "SET search_path = mallory, pg_catalog, idem")
            else:
                self.say(conn, "SET search_path = idem")
            for _ in range(self.rng.randint(1, 40)):
                if self.hostile_run.enough.is_set():
                    break
                self.transaction(conn)

    def transaction(self, conn):
        block = self.rng.random() < 0.6
        careful = block and self.rng.random() < 0.5         # goes on after an error, as psql can
        if block:
            self.say(conn, "BEGIN " + self.rng.choice(("", "", "ISOLATION LEVEL REPEATABLE READ",
                                                       "ISOLATION LEVEL SERIALIZABLE", "READ ONLY")))
        for _ in range(self.rng.randint(1, 6)):
            if careful:
                self.say(conn, "SAVEPOINT careful")
            good = self.step(conn, block)
            if careful and not good:
                self.say(conn, "ROLLBACK TO SAVEPOINT careful")
        if block:
            self.say(conn, self.rng.choice(("COMMIT", "COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'p'",
                                            "COMMIT AND CHAIN")))
        self.say(conn, "ROLLBACK")
        self.say(conn, "ROLLBACK PREPARED 'p'")

    def step(self, conn, block):
        draw = self.rng.random()
        if draw < 0.1:
            name, values = self.rng.choice(SETTINGS)
            local = "LOCAL " if block else ""
            return self.say(conn, f"SET {local}{name} = {quote(self.rng.choice(values))}")
        if draw < 0.2 and block:
            return self.say(conn, self.rng.choice(("SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO a", "ROLLBACK TO b",
                                                   "RELEASE a", "RELEASE b")))
        return self.say(conn, self.statement(), expected=True)

    def statement(self):
        shape = self.rng.choice(SHAPES)
        while "{call}" in shape:
            shape = shape.replace("{call}", self.call(), 1)
        return shape

    def call(self):
        # Half of all calls are of the two that have most to go wrong.
        name, arguments = self.rng.choice(self.hostile_run.functions if self.rng.random() < 0.5 else
                                          [f for f in self.hostile_run.functions
                                           if f[0] in ("idempotent_call", "idempotent_begin")])
        given = []
        for argument, kind, optional in arguments:
            if optional and self.rng.random() < 0.5:
                continue
            # Mostly what gets past the first check, so that there is a second.
            pool = NAMES.get(argument) if self.rng.random() < 0.93 else None
            value = quote(self.rng.choice(pool or POOLS[kind]))
            if argument == "key" and self.rng.random() < 0.4:
                value = f"'key {self.rng.randint(1, 1000000)}'"
            given.append(f"{argument} => {value}::pg_catalog.{TYPES.get(kind, kind)}")
        self.rng.shuffle(given)
        return f"idem.{name}({', '.join(given)})"

    def say(self, conn, sql, expected=False):
        self.history.append(sql[:300])
        self.tally["statements"] += 1
        try:
            rows = conn.anything(sql)
            self.tally["statements that succeeded"] += 1
            self.tally["garbage that succeeded"] += expected
            if any(secret in rows for secret in self.secrets):
                self.hostile_run.find("a secret was read", sql[:300])
            return True
        except pq.Failed as failed:
            if expected:
                self.tally["told " + failed.sqlstate] += 1
            if failed.sqlstate.startswith("XX"):
                self.hostile_run.find("internal error", f"{failed}: {sql[:500]}")
            if any(secret in failed.message for secret in self.secrets):
                self.hostile_run.find("a secret was told", f"{failed}: {sql[:300]}")
            return False


TYPES = {"integer": "int4", "bigint": "int8", "double precision": "float8", "boolean": "bool",
         "timestamp with time zone": "timestamptz", "text[]": "text[]"}


class Run:
    def __init__(self, cluster, options):
        self.cluster, self.options = cluster, options
        self.functions = []
        self.enough = threading.Event()
        self.lock = threading.Lock()
        self.found = collections.Counter()
        self.tally = collections.Counter()

    def connect(self, user):
        return pq.Connection(host=f"{self.cluster.folder}/current", port=5432, dbname="hostile", user=user,
                             sslmode="disable", gssencmode="disable")

    def find(self, what, example):
        with self.lock:
            self.found[what] += 1
            if self.found[what] <= 8:
                print(f"  FOUND  {what}: {example}", flush=True)

    def lost(self, who, lost, history):
        self.find("a session was lost", f"{who}: {lost}\n    " + "\n    ".join(history))
        self.cluster.admin_when_up("hostile").close()

    # --- steps ---

    def set_up(self):
        with self.cluster.admin("postgres") as admin:
            admin.command("CREATE DATABASE hostile")
        with self.cluster.admin("hostile") as admin:
            admin.command(SETUP.replace("{secret}", SECRET).replace("{answer}", ANSWER))
            for role in WORKER, ADMINISTRATOR:
                admin.command(SETTINGS_OF_ROLE.format(role=role))
            self.functions = [
                (name, [tuple(a.split("|")[:2]) + (a.split("|")[2] == "t",)
                        for a in (arguments or "").split("\n") if a])
                for name, arguments in admin.query(
                    "SELECT proname, (SELECT string_agg(concat_ws('|', proargnames[n],"
                    " format_type(proargtypes[n - 1], NULL), n > pronargs - pronargdefaults), E'\\n' ORDER BY n)"
                    " FROM generate_series(1, pronargs) AS n)"
                    " FROM pg_proc WHERE pronamespace = 'idem'::regnamespace ORDER BY 1")]
            self.relations = [row[0] for row in admin.query(
                "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'idem'::regnamespace AND relkind IN ('r', 'v')"
                " ORDER BY 1")]
            self.vault_before, self.keys_before = self.vault(admin), self.owners_keys(admin)
        with self.connect("granted") as mallory:
            for statement in traps():
                mallory.command(statement)
            mallory.command("CREATE TABLE mallory.t (a integer);"
                            "CREATE PROCEDURE mallory.commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;"
                            "CREATE FUNCTION mallory.deep(n int) RETURNS int LANGUAGE plpgsql AS"
                            " $$ BEGIN RETURN mallory.deep(n + 1); END $$")
            self.spring_once(mallory)
        missing = {kind for name, arguments in self.functions for argument, kind, optional in arguments} - set(POOLS)
        if missing:
            raise RuntimeError(f"no garbage for {missing}")

    def spring_once(self, mallory):
        """The traps catch who is careless: proven on a function made for it, which is dropped."""
        with self.cluster.admin("hostile") as admin:
            admin.command("CREATE FUNCTION public.careless(uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS"
                          " $$ BEGIN RETURN $1 = $1 AND now() IS NOT NULL; END $$")
            mallory.command("SET search_path = mallory, pg_catalog")
            mallory.command("SELECT public.careless('00000000-0000-0000-0000-000000000000'::pg_catalog.uuid)")
            self.tally["traps that caught a careless function"] = int(admin.value("SELECT count(*) FROM captured"))
            admin.command("DROP FUNCTION public.careless; TRUNCATE captured")

    def vault(self, admin):
        return admin.value("SELECT md5(string_agg(v::text, ',' ORDER BY id)) FROM secret.vault AS v")

    def owners_keys(self, admin):
        return admin.value("SELECT md5(string_agg(k::text, ',' ORDER BY id)) FROM idem.idempotency_keys AS k"
                           " WHERE scope = 'owner' AND key LIKE 'hidden%'")

    def locked_doors(self):
        """Without a grant nothing may be called, read or written; with every function granted, no table."""
        refused = 0
        for role in ("stranger", WORKER, ADMINISTRATOR):
            with self.connect(role) as conn:
                tries = [f"{verb} {relation}" for relation in self.relations for verb in (
                    "SELECT * FROM", "DELETE FROM", "TRUNCATE", "DROP TABLE")]
                tries += [f"INSERT INTO {r} DEFAULT VALUES" for r in self.relations if r.endswith(("keys", "claims"))]
                tries += [f"UPDATE {r} SET key = ''" for r in self.relations if r.endswith(("keys", "claims"))]
                if role == "stranger":
                    tries += [f"SELECT idem.{name}({', '.join(f'{a} => NULL' for a, kind, optional in arguments)})"
                              for name, arguments in self.functions]
                for statement in tries:
                    try:
                        conn.command(statement)
                        self.find("a door was open", f"{role}: {statement}")
                    except pq.Failed as failed:
                        # 42809: not a table.
                        if failed.sqlstate in ("42501", "42809", "55000"):
                            refused += 1
                        else:
                            self.find("a door was open", f"{role}: {statement}: {failed}")
        self.tally["statements refused for want of a right"] = refused

    def garbage(self, role, seconds):
        rng = random.Random(f"{self.options.seed} {role}")
        self.enough.clear()
        fuzzers = [Fuzzer(self, role, n, rng.random()) for n in range(SESSIONS)]
        for fuzzer in fuzzers:
            fuzzer.start()
        self.enough.wait(seconds)
        self.enough.set()
        for fuzzer in fuzzers:
            fuzzer.join(60)
            if fuzzer.is_alive():
                self.find("a session hangs", f"{fuzzer.name}: {list(fuzzer.history)}")
            self.tally += fuzzer.tally

    def sqlsmith(self, role, seconds):
        target = (f"host={self.cluster.folder}/current port=5432 dbname=hostile user={role}"
                  " options='-c search_path=smith,pg_catalog -c statement_timeout=500'")
        end = time.monotonic() + seconds
        seed = self.options.seed
        calls = self.calls_counted()
        while time.monotonic() < end:
            # A query may end its session, and sqlsmith with it.
            seed += 1
            path = f"{self.cluster.folder}/sqlsmith-{role}-{seed}.log"
            with open(path, "wb") as log:
                process = subprocess.Popen(["sqlsmith", f"--target={target}", f"--seed={seed}", "--verbose",
                                            "--exclude-catalog"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                try:
                    process.wait(max(1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.terminate()
                    process.wait()
            with open(path, errors="replace") as log:
                counts = re.findall(r"queries: (\d+)", log.read())
                self.tally["queries of sqlsmith"] += int(counts[-1]) if counts else 0
            self.tally["runs of sqlsmith"] += 1
            self.cluster.admin_when_up("hostile").close()
        self.tally[f"calls of our functions by sqlsmith, {role}"] = self.calls_counted() - calls

    def play(self, role, smith):
        """Half of the time is the worker's."""
        seconds = 30 * self.options.minutes
        self.garbage(role, seconds / 2 if smith else seconds)
        if smith:
            self.sqlsmith(role, seconds / 2)
        with self.cluster.admin_when_up("hostile") as admin:
            if self.vault(admin) != self.vault_before:
                self.find("a secret was changed", f"secret.vault, by {role}")
            if role == WORKER and self.owners_keys(admin) != self.keys_before:
                self.find("a secret was changed", "the owner's keys")

    def calls_counted(self):
        time.sleep(1)           # a session reports what it did when it has ended, and then at most once a second
        with self.cluster.admin_when_up("hostile") as admin:
            return int(admin.value("SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions"
                                   " WHERE schemaname = 'idem'"))

    def judge_log(self):
        """
        An internal error is ours if our code raised it or ran the query: sqlsmith finds some of PostgreSQL's own.
        """
        entry = []
        for line in list(self.cluster.log_lines()) + ["2000"]:
            if re.match(r"\d{4}", line) and not re.match(
                    r"\S+ \S+ \S+ \[\d+\] \S+ (DETAIL|HINT|CONTEXT|STATEMENT|LOCATION|QUERY)", line):
                self.judge_entry("".join(entry))
                entry = []
            entry.append(line)

    def judge_entry(self, entry):
        head = entry.split("\n", 1)[0]
        if "TRAP:" in entry or "PANIC:" in entry or "terminated by signal" in entry:
            self.find("a crash", entry[:1000])
        elif re.search(r"\] XX\w{3} ", head):
            location = re.search(r"LOCATION: .*", entry)
            ours = re.search(r"LOCATION: .*, (idempotency|attempt|store|keylock|fingerprint|keytime|timespan"
                             r"|stats|rules|settings|utf8|citus|sha256|command)\w*\.c", entry) or re.search(r"CONTEXT: .*idempot", entry)
            if ours:
                self.find("internal error in the log", entry[:1500])
            else:
                self.tally[f"internal errors of PostgreSQL: {location.group(0) if location else head}"[:110]] += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10 ** 6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    cluster = cluster_module.Cluster(os.environ.get("PG_CONFIG", "pg_config"), options.seed)
    run = Run(cluster, options)
    smith = shutil.which("sqlsmith")
    try:
        cluster.start(wire=False)
        with cluster.admin("postgres") as admin:
            for setting in ("log_error_verbosity = verbose", "track_functions = 'all'"):
                admin.command("ALTER SYSTEM SET " + setting)
        cluster.stop_server("a")
        cluster.start_server("a")
        run.set_up()
        run.locked_doors()
        if not smith:
            print("SKIPPED: sqlsmith, which is not installed")
        for role in WORKER, ADMINISTRATOR:
            run.play(role, smith)
        with cluster.admin_when_up("hostile") as admin:
            for who, how, count in admin.query(
                    "SELECT who, how, count(*) FROM captured GROUP BY 1, 2 UNION ALL"
                    " SELECT key, 'idempotency_keys', 1 FROM mallory.idempotency_keys UNION ALL"
                    " SELECT key, 'idempotency_claims', 1 FROM mallory.idempotency_claims"):
                run.find("a name was captured", f"{how}, as {who}, {count} times")
        run.judge_log()
    except (KeyboardInterrupt, SystemExit) as told:
        cluster.give_up(told)
    except BaseException as error:
        print(f"the test itself failed: {error!r}\n{cluster.log_tail()}", flush=True)
        traceback.print_exc(file=sys.stdout)
        run.found["the test itself failed"] += 1
    finally:
        cluster.stop()
        conclude(run, cluster, smith)


def conclude(run, cluster, smith):
    print(f"\n{cluster.version}, seed {run.options.seed}, {len(run.functions)} functions")
    for name, count in sorted(run.tally.items()):
        print(f"  {count:>9}  {name}")
    print()
    passed = failed = 0
    for what in ("a crash", "a session was lost", "a session hangs", "internal error", "internal error in the log",
                 "a name was captured", "a secret was read", "a secret was told", "a secret was changed",
                 "a door was open", "the test itself failed"):
        good = not run.found[what]
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok     ' if good else 'FAILED '} never: {what}")
    for name in ["traps that caught a careless function", "statements that succeeded",
                 "statements refused for want of a right"] + [
                 f"calls of our functions by sqlsmith, {role}" for role in (WORKER, ADMINISTRATOR) if smith]:
        good = run.tally[name] > 0
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok     ' if good else 'FAILED '} it happened: {name}")
    if failed:
        print(f"the server's folder is kept: {cluster.folder}")
    else:
        cluster.remove()
    print(f"\n{passed} passed, {failed} failed", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
