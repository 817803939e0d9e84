#!/usr/bin/python3
"""For the person on call: support.py shows what is parked, support.py ORDER… works on these orders once more.

To be called when the trouble is over. The derived keys are still the same, so what the service has done under them it
does not do again. Where the service may have forgotten them, ask it instead, and settle with idempotent_resolve.
"""
import sys

from shop import LEASE, SCOPE, Claim, connect, process


def retry(db, key):
    """One more attempt, under the next number; whatever parked it does not count. Returns the HTTP status."""
    claim = db.execute("SELECT * FROM idempotent_retry(%s, %s, %s)", [SCOPE, key, LEASE]).fetchone()
    return process(db, Claim(claim.key, claim.attempt, claim.checkpoint, claim.state))


if __name__ == "__main__":
    db = connect()
    if len(sys.argv) > 1:
        for key in sys.argv[1:]:
            print(f"order {key}: {retry(db, key)}")
    else:
        for claim in db.execute("""SELECT key, attempts, last_error FROM idempotency_stalled
                                   WHERE parked AND scope = %s ORDER BY key::bigint""", [SCOPE]):
            print(*claim, sep="\t")
