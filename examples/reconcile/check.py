"""What must hold when the batch has run: our ledger beside the provider's, the list beside the faults that were injected.

The provider's ledger is the truth here, and the faults that it noted are what the list is held against; the batch has seen
neither.
"""
import re
import sqlite3

# What nobody can settle from here, and the verdicts under which it must be listed. All other faults must be put right.
LISTED = {
    "never acts, never answers": {"open_missing"},
    "forgets the key and pays twice": {"twice_there"},
    "pays twice and keeps silent": {"open_here", "twice_there"},
    "alters the amount": {"amount_differs"},
    "alters the amount and keeps silent": {"open_here", "amount_differs"},
    "alters the amount and says refused": {"refused_here", "amount_differs"},
    "says paid and never acts": {"missing_there"},
    "says paid and refuses": {"refused_there"},
    "pays under a key of nobody": {"unknown_here"},
}
SETTLED = {
    "acts and keeps silent for good": "settled",
    "refuses and keeps silent for good": "settled",
    "refuses and has paid": "corrected",
}
AGREES_NEVERTHELESS = {"never acts, never answers", "pays under a key of nobody"}


class Evening:
    """Both sides as they are when the batch has run."""

    def __init__(self, db, ledger):
        self.db, self.provider = db, sqlite3.connect(ledger)
        self.faults = dict(self.provider.execute("SELECT order_id, fault FROM faults"))
        # By order: what was charged, and the last charge's number.
        self.theirs = {order: (amount, f"ch_{n}") for order, amount, n in self.provider.execute(
            "SELECT order_id, sum(amount), max(n) FROM charges WHERE ok AND order_id IS NOT NULL GROUP BY order_id")}
        self.ours = dict(self.rows("SELECT order_id, sum(amount)::bigint FROM ledger GROUP BY order_id"))

    def rows(self, query):
        return [tuple(row) for row in self.db.execute(query)]

    def orders_with(self, faults):
        return {order for order, fault in self.faults.items() if fault in faults}


def differ(got, wanted):
    """None if both sets are equal, else what is not in both."""
    if got == wanted:
        return None
    return f"too many: {sorted(got - wanted, key=str)[:3]}, too few: {sorted(wanted - got, key=str)[:3]}"


def ledgers_agree(e):
    both = {order for order in set(e.ours) | set(e.theirs)
            if e.ours.get(order, 0) != e.theirs.get(order, (0,))[0]}
    return differ(both, e.orders_with(set(LISTED) - AGREES_NEVERTHELESS))


def all_faults_are_listed(e):
    wanted = {(order, verdict) for order, fault in e.faults.items() for verdict in LISTED.get(fault, set())
              if verdict != "unknown_here"}
    strangers = e.provider.execute("SELECT key FROM charges WHERE order_id IS NULL")
    wanted |= {(key, "unknown_here") for key, in strangers}
    got = e.rows("SELECT coalesce(order_id::text, theirs ->> 'key') AS of, verdict FROM for_a_person")
    if len(got) != len(set(got)):
        return "a line is listed twice"
    return differ(set(got), {(str(order), verdict) for order, verdict in wanted})


def one_key_an_order(e):
    keys = e.provider.execute("SELECT count(DISTINCT key), count(DISTINCT order_id) FROM calls").fetchone()
    pairs = e.provider.execute("SELECT count(*) FROM (SELECT DISTINCT key, order_id FROM calls)").fetchone()[0]
    ours = {(str(key), order) for order, key in e.rows("SELECT id, charge_key FROM orders")}
    theirs = set(e.provider.execute("SELECT DISTINCT key, order_id FROM calls"))
    return differ(theirs, ours) or (None if keys == (pairs, pairs) else f"{keys} keys and orders, {pairs} pairs")


def nothing_is_entered_twice(e):
    return differ(set(e.rows("SELECT order_id FROM ledger GROUP BY order_id HAVING count(*) > 1")), set())


def wanted_answer(e, order):
    """Outcome, status and charge that a client must get now; the charge is None where any will do."""
    verdicts = LISTED.get(e.faults.get(order), set())
    if verdicts & {"open_here", "open_missing"}:
        return "parked", None, None
    if "refused_here" in verdicts:
        return "replayed", 402, None
    if verdicts - {"unknown_here"}:
        return "replayed", 200, None
    if order in e.theirs:
        return "replayed", 200, e.theirs[order][1]
    return "replayed", 402, None


def answers(e):
    """Every client asks again. What begins by mistake is rolled back."""
    with e.db.transaction(force_rollback=True):
        return e.rows("""SELECT order_id, a.outcome, a.status, a.response ->> 'charge' AS charge
            FROM clients, idempotent_try_begin('shop orders', order_id::text,
                request => jsonb_build_object('order', order_id, 'amount', amount), lease => '1 minute') a""")


def clients_are_answered(e):
    wrong = []
    for order, *got in answers(e):
        wanted = wanted_answer(e, order)
        if tuple(got[:2]) != wanted[:2] or wanted[2] not in (None, got[2]):
            wrong.append((order, got, wanted))
    return f"{len(wrong)} wrong: {wrong[:3]}" if wrong else None


def orders_say_what_clients_hear(e):
    statuses = {"paid": 200, "refused": 402, "accepted": None}
    ours = {(order, statuses[status], order in e.ours) for order, status in e.rows("SELECT id, status FROM orders")}
    return differ(ours, {(order, status, status == 200) for order, _, status, _ in answers(e)})


def corrections_are_told(e):
    """Each with the line that is its reason, and with the answer, or else the error, that was there before."""
    wanted = {(order, SETTLED[fault]) for order, fault in e.faults.items() if fault in SETTLED}
    rows = e.rows("""SELECT o.id, c.what, c.reason, c.status, c.response ->> 'error' AS declined, c.error, l.key = o.charge_key AS is_line
        FROM idempotency_corrections c JOIN orders o ON o.id::text = c.key
        LEFT JOIN statement_lines l ON format('%s, line %s', l.file, l.n) = c.reason""")
    for order, what, reason, status, declined, error, is_line in rows:
        former = (status, declined, error) == (402, "card_declined", None) if what == "corrected" else bool(error)
        if not is_line or not former or not re.fullmatch(r"settlement \S+, line \d+", reason):
            return f"order {order}: {what}, {reason}, {status}, {declined}, {error}"
    return "a key was corrected twice" if len(rows) != len({row[0] for row in rows}) else differ({row[:2] for row in rows}, wanted)


CHECKS = {
    "our ledger and the provider's agree but for the faults that nobody can settle from here": ledgers_agree,
    "each of these is listed with its verdict, and nothing else is": all_faults_are_listed,
    "no order is charged under two keys, and no key is used for two orders": one_key_an_order,
    "no order is entered twice into our ledger": nothing_is_entered_twice,
    "every client that asks again gets the answer that is right by now": clients_are_answered,
    "orders, ledger and answers say the same": orders_say_what_clients_hear,
    "each correction has its reason and what was there before": corrections_are_told,
}


def check(db, ledger):
    """What does not hold: the names of the checks, each with why."""
    evening = Evening(db, ledger)
    found = {name: look(evening) for name, look in CHECKS.items()}
    return {name: why for name, why in found.items() if why}
