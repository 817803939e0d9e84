# What happens to the servers while the clients work.

import collections
import os
import signal
import time

import cluster as cluster_module
import pq

LIGHT = ("terminate", "cancel", "kill -9", "immediate stop", "locked accounts", "restart PgBouncer", "cut all")
UPKEEP = ("VACUUM FULL", "REINDEX CONCURRENTLY", "pg_dump and restore")
ALL = LIGHT + UPKEEP + ("failover",)

WEIGHT = {"terminate": 30, "cancel": 10, "kill -9": 6, "immediate stop": 3, "locked accounts": 8,
          "restart PgBouncer": 6, "cut all": 4, "VACUUM FULL": 4, "REINDEX CONCURRENTLY": 4, "pg_dump and restore": 1,
          "failover": 0.7}

# A pause between two faults, on average half of it.
PAUSE = 0.5


class Driver:
    def __init__(self, machine, rng, kinds):
        self.machine, self.cluster, self.rng = machine, machine.cluster, rng
        self.kinds = [kind for kind in kinds if kind != "restart PgBouncer" or cluster_module.POOLER]
        self.tally = collections.Counter()

    def run(self, end, done):
        # Each kind once, in any order, even if that takes longer; and then as it comes.
        first = list(self.kinds)
        self.rng.shuffle(first)
        latest = end + 120
        while (time.monotonic() < end or first and time.monotonic() < latest) and not done():
            time.sleep(self.rng.uniform(0, PAUSE))
            if first:
                kind = first.pop()
                if not self.strike(kind):
                    first.insert(0, kind)
            elif self.kinds:
                self.strike(self.draw(self.kinds))

    def draw(self, kinds):
        return self.rng.choices(kinds, [WEIGHT[kind] for kind in kinds])[0]

    def strike(self, kind):
        """True if it came to that."""
        try:
            if ACTIONS[kind](self) is False:
                return False
            self.tally["fault: " + kind] += 1
            return True
        except pq.Lost as lost:             # the driver's own session may be hit by the fault before
            print(f"  {kind}: {lost}")
            self.cluster.admin_when_up(self.machine.database).close()
            return False

    def look(self):
        self.machine.look()
        self.tally["looks"] += 1

    # --- processes ---

    def pick_backend(self, admin, others=False):
        rows = admin.query("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND"
                           " (usename = 'app' AND datname = current_database()"
                           " OR $1 AND backend_type IN ('checkpointer', 'walwriter', 'background writer'))"
                           " ORDER BY pid", "t" if others else "f")
        return self.rng.choice(rows)[0] if rows else None

    def terminate(self):
        with self.machine.admin() as admin:
            pid = self.pick_backend(admin)
            return pid is not None and admin.value("SELECT pg_terminate_backend($1)", pid) == "t"

    def cancel(self):
        # A commit that waits for a standby and is cancelled reports success: not under a standby.
        if self.cluster.standby:
            return False
        with self.machine.admin() as admin:
            pid = self.pick_backend(admin)
            return pid is not None and admin.value("SELECT pg_cancel_backend($1)", pid) == "t"

    def kill(self):
        with self.machine.admin() as admin:
            pid = self.pick_backend(admin, others=True)
            if pid is None:
                return False
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                return False
            # The whole server restarts, which ends this session too.
            end = time.monotonic() + 30
            try:
                while time.monotonic() < end:
                    admin.query("SELECT 1")
                    time.sleep(0.005)
            except (pq.Lost, pq.Failed):
                pass
        self.cluster.admin_when_up(self.machine.database).close()
        self.look()

    def stop_at_once(self):
        self.cluster.stop_server(self.cluster.primary)
        self.cluster.start_server(self.cluster.primary)
        self.look()

    def restart_pooler(self):
        self.cluster.restart_pooler(self.rng.choice((signal.SIGTERM, signal.SIGKILL)))

    def cut_all(self):
        self.cluster.proxy.cut_all()

    def lock_accounts(self):
        with self.machine.admin() as admin:
            admin.command("BEGIN")
            admin.command("LOCK TABLE bank.account IN EXCLUSIVE MODE")
            time.sleep(0.05)
            admin.command("ROLLBACK")

    # --- upkeep ---

    def upkeep(self, *statements):
        with self.machine.admin() as admin:
            for statement in statements:
                try:
                    admin.command(statement)
                except pq.Failed as failed:
                    if failed.sqlstate != "40P01":
                        self.machine.violation("upkeep failed", f"{statement}: {failed}")

    def vacuum_full(self):
        self.upkeep("VACUUM FULL idem.idempotency_keys", "VACUUM FULL idem.idempotency_claims")

    def reindex(self):
        self.upkeep("REINDEX TABLE CONCURRENTLY idem.idempotency_keys",
                    "REINDEX TABLE CONCURRENTLY idem.idempotency_claims")

    def dump(self):
        """A dump is a snapshot too: what is restored from it must be right by itself."""
        import machine as machine_module
        cluster, database = self.cluster, self.machine.database
        connection = ("-h", f"{cluster.folder}/current", "-p", "5432", "-U", "postgres")
        file = f"{cluster.folder}/dump"
        cluster.run("pg_dump", *connection, "-Fc", "-Z0", "-f", file, database)
        with cluster.admin("postgres") as admin:
            admin.command("DROP DATABASE IF EXISTS restored")
            admin.command("CREATE DATABASE restored")
        cluster.run("pg_restore", *connection, "-d", "restored", file)
        os.unlink(file)
        with cluster.admin("restored") as admin:
            for what, example in machine_module.oracle.look(admin, machine_module.oracle.QUERIES):
                self.machine.violation("in a restored dump: " + what, example)
        with cluster.admin("postgres") as admin:
            admin.command("DROP DATABASE restored")

    # --- failover ---

    def fail_over(self):
        """A standby that commits wait for, faults meanwhile, its promotion; clients move over."""
        self.cluster.attach_standby()
        end = time.monotonic() + self.rng.uniform(1, 4)
        kinds = [kind for kind in ("terminate", "kill -9", "immediate stop", "cut all") if kind in self.kinds]
        while time.monotonic() < end:
            self.strike(self.draw(kinds))
            time.sleep(self.rng.uniform(0, PAUSE))
        self.cluster.promote()
        self.look()


ACTIONS = {
    "terminate": Driver.terminate,
    "cancel": Driver.cancel,
    "kill -9": Driver.kill,
    "immediate stop": Driver.stop_at_once,
    "locked accounts": Driver.lock_accounts,
    "restart PgBouncer": Driver.restart_pooler,
    "cut all": Driver.cut_all,
    "VACUUM FULL": Driver.vacuum_full,
    "REINDEX CONCURRENTLY": Driver.reindex,
    "pg_dump and restore": Driver.dump,
    "failover": Driver.fail_over,
}
