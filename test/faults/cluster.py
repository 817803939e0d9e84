# The servers of a run: a primary, at times its synchronous standby, a pooler, and the proxy in front of them.
#
# Everything lies in one folder that is nobody else's, talks through sockets in it, and goes with it. Clients know one
# path alone, "current", a link to the socket's folder of whichever server is the primary.

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pq
import proxy

POOLER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

SETTINGS = """
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
cluster_name = '{name}'
# What is killed here are processes, not the machine.
fsync = off
synchronous_commit = on
wal_level = replica
max_wal_senders = 5
wal_keep_size = 256MB
wal_retrieve_retry_interval = 100ms
hot_standby_feedback = on
max_connections = 150
max_prepared_transactions = 50
shared_buffers = 64MB
checkpoint_timeout = 30s
max_wal_size = 256MB
autovacuum_naptime = 5s
deadlock_timeout = 200ms
# No client may wait for ever, whatever happens to the others.
lock_timeout = 5s
statement_timeout = 20s
idle_in_transaction_session_timeout = 20s
jit = off
log_line_prefix = '%m [%p] %e '
log_statement = none
log_min_duration_statement = -1
"""

POOLER_SETTINGS = """
[databases]
* = host={current} port=5432
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {socket}
unix_socket_mode = 0700
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 6
max_client_conn = 200
server_login_retry = 0.1
query_wait_timeout = 10
ignore_startup_parameters = extra_float_digits
pidfile =
log_connections = 0
log_disconnections = 0
"""


class Cluster:
    def __init__(self, pg_config, seed):
        def ask(what):
            return subprocess.run([pg_config, what], check=True, capture_output=True, text=True).stdout.strip()
        self.bindir = ask("--bindir")
        self.version = ask("--version")
        self.major = int("".join(c if c.isdigit() else " " for c in self.version).split()[0])
        pq.load(ask("--libdir"))
        self.folder = tempfile.mkdtemp(prefix="faults.")
        self.primary, self.standby = "a", None
        self.pooler, self.wire = None, False
        for name in ("a", "b", "pooler", "proxy"):
            os.mkdir(f"{self.folder}/{name}", 0o700)
        self.proxy = proxy.Proxy([(f"{self.folder}/proxy/.s.PGSQL.1", f"{self.folder}/current/.s.PGSQL.5432"),
                                  (f"{self.folder}/proxy/.s.PGSQL.2", f"{self.folder}/pooler/.s.PGSQL.6432")], seed)

    # --- ways in ---

    def admin(self, database="bank", node=None, **more):
        """Straight to a server, as its superuser."""
        host = f"{self.folder}/{node}" if node else f"{self.folder}/current"
        return pq.Connection(host=host, port=5432, dbname=database, user="postgres", application_name="faults admin",
                             sslmode="disable", gssencmode="disable",
                             options="-c statement_timeout=0 -c lock_timeout=0 -c client_min_messages=error", **more)

    def client(self, database, pooled):
        """Through the proxy, as the application."""
        return pq.Connection(host=f"{self.folder}/proxy", port=2 if pooled else 1, dbname=database, user="app",
                             sslmode="disable", gssencmode="disable")

    def admin_when_up(self, database="bank", patience=60):
        end = time.monotonic() + patience
        while True:
            try:
                connection = self.admin(database)
                if connection.value("SELECT pg_is_in_recovery()") == "f":
                    return connection
                connection.close()
            except pq.Lost as lost:
                if time.monotonic() > end:
                    raise RuntimeError(f"the server did not come back: {lost}\n{self.log_tail()}")
            time.sleep(0.02)

    # --- programs ---

    def run(self, program, *arguments, check=True):
        with open(f"{self.folder}/{program}.log", "ab") as log:
            done = subprocess.run([f"{self.bindir}/{program}", *arguments], stdin=subprocess.DEVNULL,
                                  stdout=log, stderr=log)
        if check and done.returncode != 0:
            with open(f"{self.folder}/{program}.log", errors="replace") as log:
                raise RuntimeError(f"{program} failed\n" + log.read()[-2000:] + self.log_tail())
        return done.returncode == 0

    def data(self, name):
        return f"{self.folder}/data-{name}"

    def log_tail(self):
        try:
            with open(f"{self.folder}/{self.primary}.log", errors="replace") as log:
                return log.read()[-3000:]
        except OSError:
            return ""

    def start(self, wire=True):
        self.run("initdb", "-D", self.data("a"), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C",
                 "--no-sync")
        self.configure("a")
        self.start_server("a")
        self.point("a")
        with self.admin("postgres") as admin:
            admin.command("CREATE ROLE app LOGIN")
        self.wire = wire
        if wire:
            self.start_pooler()
            self.proxy.start()

    def configure(self, name):
        with open(f"{self.data(name)}/postgresql.auto.conf", "a") as conf:
            conf.write(SETTINGS.format(socket=f"{self.folder}/{name}", name=name))
            # Where the extension is, if it is elsewhere.
            if os.environ.get("TEMP_CONFIG"):
                with open(os.environ["TEMP_CONFIG"]) as settings:
                    conf.write(settings.read())

    def start_server(self, name):
        self.run("pg_ctl", "-s", "-w", "-t", "120", "-D", self.data(name), "-l", f"{self.folder}/{name}.log", "start")

    def stop_server(self, name, mode="immediate", check=True):
        self.run("pg_ctl", "-s", "-w", "-t", "120", "-D", self.data(name), "-m", mode, "stop", check=check)

    def point(self, name):
        os.symlink(name, f"{self.folder}/current.new")
        os.rename(f"{self.folder}/current.new", f"{self.folder}/current")
        self.primary = name

    def start_pooler(self):
        if POOLER is None:
            return
        ini, users = f"{self.folder}/pooler.ini", f"{self.folder}/pooler.users"
        if not os.path.exists(ini):
            with open(users, "w") as file:
                file.write('"app" ""\n')
            with open(ini, "w") as file:
                file.write(POOLER_SETTINGS.format(current=f"{self.folder}/current", socket=f"{self.folder}/pooler",
                                                  users=users))
        path = f"{self.folder}/pooler/.s.PGSQL.6432"
        if os.path.exists(path):
            os.unlink(path)
        with open(f"{self.folder}/pooler.log", "ab") as log:
            self.pooler = subprocess.Popen([POOLER, ini], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while not os.path.exists(path):
            if self.pooler.poll() is not None or time.monotonic() > end:
                with open(f"{self.folder}/pooler.log", errors="replace") as log:
                    raise RuntimeError("pgbouncer does not start\n" + log.read()[-2000:])
            time.sleep(0.01)

    def restart_pooler(self, how):
        self.pooler.send_signal(how)
        self.pooler.wait()
        self.start_pooler()

    # --- the standby ---

    def attach_standby(self):
        """A second server that every commit waits for."""
        name = "b" if self.primary == "a" else "a"
        shutil.rmtree(self.data(name), ignore_errors=True)
        self.run("pg_basebackup", "-h", f"{self.folder}/{self.primary}", "-p", "5432", "-U", "postgres", "-D",
                 self.data(name), "-R", "-c", "fast", "-X", "stream", "--no-sync")
        self.configure(name)
        with open(f"{self.data(name)}/postgresql.auto.conf", "a") as conf:
            conf.write(f"primary_conninfo = 'host={self.folder}/{self.primary} port=5432 user=postgres "
                       "application_name=standby sslmode=disable gssencmode=disable'\n"
                       "synchronous_standby_names = ''\n")
        self.start_server(name)
        self.standby = name
        self.set_synchronous("standby")

    def set_synchronous(self, names):
        while True:
            with self.admin_when_up() as admin:
                try:
                    admin.command(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
                    admin.command("SELECT pg_reload_conf()")
                    return
                except pq.Lost:
                    pass

    def promote(self):
        """
        The primary is lost, the standby takes over.

        The standby must have all that the primary has shown to anyone. A commit that waits for the standby and whose
        session is killed, or that is found again by crash recovery, is visible without having been confirmed: that is
        PostgreSQL's, and no failover may happen before the standby has caught up with it. Called while nothing else is
        being killed.
        """
        with self.admin_when_up() as admin:
            goal = admin.value("SELECT pg_current_wal_flush_lsn()")
            end = time.monotonic() + 60
            while admin.value("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby'"
                              " AND sync_state = 'sync' AND flush_lsn >= $1::pg_lsn", goal) != "1":
                if time.monotonic() > end:
                    raise RuntimeError("the standby does not catch up")
                time.sleep(0.02)
        old, new = self.primary, self.standby
        self.stop_server(old)
        self.run("pg_ctl", "-s", "-w", "-t", "60", "-D", self.data(new), "promote")
        self.point(new)
        self.standby = None

    # --- the logs ---

    def log_lines(self):
        for name in ("a", "b"):
            if os.path.exists(f"{self.folder}/{name}.log"):
                with open(f"{self.folder}/{name}.log", errors="replace") as log:
                    yield from log

    def count_logged(self, text):
        return sum(text in line for line in self.log_lines())

    # --- the end ---

    def stop(self):
        if self.wire:
            self.proxy.stop()
        if self.pooler is not None and self.pooler.poll() is None:
            self.pooler.send_signal(signal.SIGKILL)
            self.pooler.wait()
        for name in ("a", "b"):
            if os.path.exists(f"{self.data(name)}/postmaster.pid"):
                self.stop_server(name, check=False)

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def give_up(self, told):
        """Somebody ends the program, by Ctrl-C or SIGTERM: no verdict, and nothing is left behind."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.stop()
        self.remove()
        sys.stdout.flush()
        # Not sys.exit, which would wait for threads that are still looking for the server.
        os._exit(130 if isinstance(told, KeyboardInterrupt) else told.code)
