# What must be true at every moment, read in one snapshot, whatever the clients are just doing.

FINAL = "e.phase IN ('transfer', 'credit')"
DECLINED = "(k.response ? 'declined' OR k.response ? 'error')"

QUERIES = (
    ("the sum of all balances changed",
     "SELECT sum(balance), sum(base) FROM bank.account HAVING sum(balance) <> sum(base)"),

    ("a balance does not follow from the entries",
     "SELECT id, balance, base + coalesce(moved, 0) FROM bank.account LEFT JOIN ("
     " SELECT id, sum(amount) AS moved FROM (SELECT src AS id, -amount AS amount FROM bank.effect"
     " UNION ALL SELECT dst, amount FROM bank.effect) AS moves GROUP BY id) AS moved USING (id)"
     " WHERE balance <> base + coalesce(moved, 0)"),

    ("work was done twice",
     "SELECT key, phase, count(*), array_agg(id) FROM bank.effect GROUP BY key, phase HAVING count(*) > 1"),

    ("work without its key",
     f"SELECT e.key, e.phase, e.id FROM bank.effect e WHERE {FINAL} AND NOT EXISTS ("
     f" SELECT FROM idem.idempotency_keys k WHERE k.scope = 'bank' AND k.key = e.key AND NOT {DECLINED}"
     " AND k.response @> jsonb_build_object('entry', e.id))"),

    ("a key without its work",
     f"SELECT k.key, k.response FROM idem.idempotency_keys k WHERE k.scope = 'bank' AND NOT {DECLINED}"
     f" AND NOT EXISTS (SELECT FROM bank.effect e WHERE e.key = k.key AND {FINAL})"),

    ("a declined request with work",
     "SELECT k.key FROM idem.idempotency_keys k JOIN bank.effect e ON e.key = k.key"
     f" WHERE k.scope = 'bank' AND {DECLINED}"),

    ("a first phase that neither a claim nor a key knows of",
     "SELECT e.key FROM bank.effect e WHERE e.phase = 'debit'"
     " AND NOT EXISTS (SELECT FROM bank.effect f WHERE f.key = e.key AND f.phase = 'credit')"
     " AND NOT EXISTS (SELECT FROM idem.idempotency_claims c WHERE c.scope = 'bank' AND c.key = e.key"
     " AND c.checkpoint = 'debited')"),

    ("a second phase without the first",
     "SELECT e.key FROM bank.effect e WHERE e.phase = 'credit'"
     " AND NOT EXISTS (SELECT FROM bank.effect f WHERE f.key = e.key AND f.phase = 'debit')"),

    ("a checkpoint without its phase",
     "SELECT c.key FROM idem.idempotency_claims c WHERE c.checkpoint = 'debited'"
     " AND NOT EXISTS (SELECT FROM bank.effect e WHERE e.key = c.key AND e.phase = 'debit')"),

    ("a key both finished and claimed",
     "SELECT c.key FROM idem.idempotency_claims c JOIN idem.idempotency_keys k USING (id)"
     " WHERE k.expires_at > clock_timestamp()"),

    ("a key used again before it expired",
     # As the row is had: the SQL edition's first_seen_at is when begin looked, in vain, before a prune took the last one away.
     "SELECT key, used_at, previous, kept FROM (SELECT key, used_at,"
     " lag(first_seen_at) OVER w AS previous, lag(retention) OVER w AS kept FROM bank.brief"
     " WINDOW w AS (PARTITION BY key ORDER BY used_at)) AS uses WHERE used_at < previous + kept"),

    ("a message was consumed again before it expired",
     "SELECT key, b.before, b.after, a.before, a.after, a.retention FROM bank.brief_message a"
     " JOIN bank.brief_message b USING (key) WHERE b.before > a.after AND b.after < a.before + a.retention"),

    ("a message was consumed twice",
     "SELECT key, count(*) FROM bank.message GROUP BY key HAVING count(*) > 1"),

    ("a message consumed without its key, or a key without its message",
     "SELECT key FROM bank.message m FULL JOIN (SELECT key FROM idem.idempotency_keys WHERE scope = 'inbox') AS k"
     " USING (key) WHERE m.* IS NULL OR k.* IS NULL"),
)

# When every client has its answer nothing is under way any more.
AT_REST = (
    ("a claim is left", "SELECT scope, key, attempt, checkpoint, lease_until FROM idem.idempotency_claims"),
    ("a prepared transaction is left",
     "SELECT gid, prepared FROM pg_prepared_xacts WHERE database = current_database()"),
    ("a lock is left",
     "SELECT pid, objid, mode, granted FROM pg_locks WHERE locktype = 'advisory'"
     " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"),
)


def look(admin, queries):
    """The violations found: what, and an example."""
    found = []
    admin.command("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    for what, query in queries:
        rows = admin.query(query)
        if rows:
            found.append((what, f"{len(rows)} of them, such as {rows[0]}"))
    admin.command("COMMIT")
    return found


def compare_answers(admin, requests):
    """Each answer that a client got against what is stored, both ways."""
    stored = {key: response for key, response in
              admin.query("SELECT key, response FROM idem.idempotency_keys WHERE scope = 'bank'")}
    found = []
    for request in requests:
        if request.answer is None:
            found.append(("a key without an answer", repr(request.key)))
        elif stored.get(request.key) != request.answer:
            found.append(("an answer that is not the stored one",
                          f"{request.key!r} {request.mode}: {request.answer}, stored {stored.get(request.key)}"))
    asked = {request.key for request in requests}
    for key in stored:
        if key not in asked:
            found.append(("a stored key that nobody asked for", repr(key)))
    return found
