/*-------------------------------------------------------------------------
 *
 * cases.c
 *	  The rules of src/rules.c as tables of cases: a program without a server.
 *
 * test/checks/rules compiles and runs it.  Its output is a line for each case.
 * A fingerprint is one letter here; times are seconds from "now", which is 0.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "../../src/rules.c"

#undef printf

/* What rules.c calls in other rooms. */
bool
fingerprint_differs(const Fingerprint *stored, const Fingerprint *given)
{
	return stored->len > 0 && given->len > 0 &&
		stored->bytes[0] != given->bytes[0];
}

int32
timespan_retry_after(int64 usecs)
{
	return Max((usecs + USECS_PER_SEC - 1) / USECS_PER_SEC, 1);
}

static int	passed = 0;
static int	failed = 0;

static void
is(const char *what, int64 got, int64 wanted)
{
	if (got == wanted)
		passed++;
	else
		failed++;
	printf(got == wanted ? "ok      %s\n" : "FAILED  %s: got " INT64_FORMAT ", wanted " INT64_FORMAT "\n",
		   what, got, wanted);
}

static Fingerprint
fingerprint(char letter)
{
	Fingerprint made = {letter == 0 ? 0 : 1, {letter}};

	return made;
}

#define S USECS_PER_SEC

/* What begin returns ------------------------------------------------------- */

#define RETENTION 100			/* of the request, in seconds */

/* How a key stands; 0 is null, as in StoredClaim, so "now" is 1 below. */
typedef struct OutcomeCase
{
	const char *what;
	Outcome		wanted;
	char		request;		/* its fingerprint, or 0 */
	bool		held_elsewhere;
	SentBy		by;
	int			sent_at;
	bool		other_name;
	bool		has_key;
	char		key;			/* its fingerprint, or 0 */
	int			expires_at;
	bool		shortened;
	bool		has_claim;
	char		claim;			/* its fingerprint, or 0 */
	int			attempt_no;
	int			max_attempts;
	int			lease_until;
	int			retry_at;
	int			parked_at;
	int			reset_at;
} OutcomeCase;

#define KEY(fp, expires) .has_key = true, .key = fp, .expires_at = expires
#define CLAIM(no, until) .has_claim = true, .attempt_no = no, .lease_until = until

static const OutcomeCase outcome_cases[] = {
	{"nothing is stored", OUTCOME_STARTED},
	{"nothing is stored, held elsewhere", OUTCOME_IN_PROGRESS, .held_elsewhere = true},
	{"finished", OUTCOME_REPLAYED, KEY(0, 10)},
	{"finished, held elsewhere: an answer needs no lock", OUTCOME_REPLAYED, .held_elsewhere = true, KEY(0, 10)},
	{"finished, the same request", OUTCOME_REPLAYED, .request = 'a', KEY('a', 10)},
	{"finished, another request", OUTCOME_MISMATCH, .request = 'b', KEY('a', 10)},
	{"finished, another request, held elsewhere", OUTCOME_MISMATCH, .request = 'b', .held_elsewhere = true, KEY('a', 10)},
	{"finished, no request is given", OUTCOME_REPLAYED, KEY('a', 10)},
	{"finished, none was given", OUTCOME_REPLAYED, .request = 'a', KEY(0, 10)},
	{"finished, another name under the id", OUTCOME_MISMATCH, .other_name = true, KEY(0, 10)},
	{"finished, however old the request", OUTCOME_REPLAYED, .by = SENT_BY_CALLER, .sent_at = -1000, KEY(0, 10)},
	{"expired this moment", OUTCOME_STARTED, KEY('a', 1)},
	{"expired, another request", OUTCOME_STARTED, .request = 'b', KEY('a', 1)},
	{"expired, held elsewhere", OUTCOME_IN_PROGRESS, .held_elsewhere = true, KEY('a', 1)},

	{"sent within the retention", OUTCOME_STARTED, .by = SENT_BY_CALLER, .sent_at = -98},
	{"sent a retention ago", OUTCOME_EXPIRED, .by = SENT_BY_CALLER, .sent_at = 1 - RETENTION},
	{"made a retention ago, by its own time", OUTCOME_EXPIRED, .by = SENT_BY_KEY, .sent_at = 1 - RETENTION},
	{"a time that is not known", OUTCOME_STARTED, .sent_at = -1000},
	{"a key's time more than a retention ahead", OUTCOME_STARTED, .by = SENT_BY_KEY, .sent_at = 102, KEY('a', 1)},
	{"sent before the expired row expired", OUTCOME_EXPIRED, .by = SENT_BY_CALLER, .sent_at = -50, KEY('a', -10)},
	{"the same, but its retention was shortened", OUTCOME_STARTED, .by = SENT_BY_CALLER, .sent_at = -50, KEY('a', -10),
	.shortened = true},
	{"sent when the expired row expired", OUTCOME_STARTED, .by = SENT_BY_CALLER, .sent_at = -10, KEY('a', -10)},
	{"sent after the expired row expired", OUTCOME_STARTED, .by = SENT_BY_CALLER, .sent_at = -5, KEY('a', -10)},
	{"late, but held elsewhere: its end is not known yet", OUTCOME_IN_PROGRESS, .held_elsewhere = true,
	.by = SENT_BY_CALLER, .sent_at = -1000},

	{"a lease is live", OUTCOME_IN_PROGRESS, CLAIM(1, 10)},
	{"a lease is live, another request", OUTCOME_MISMATCH, .request = 'b', CLAIM(1, 10), .claim = 'a'},
	{"a lease ends this moment", OUTCOME_RECOVERED, CLAIM(1, 1)},
	{"a lease is over, held elsewhere", OUTCOME_IN_PROGRESS, .held_elsewhere = true, CLAIM(1, -10)},
	{"a lease is over, another request", OUTCOME_MISMATCH, .request = 'b', CLAIM(1, -10), .claim = 'a'},
	{"a lease is over, however old the request", OUTCOME_RECOVERED, .by = SENT_BY_CALLER, .sent_at = -1000, CLAIM(1, -10)},
	{"a lease is over beside an expired row", OUTCOME_RECOVERED, KEY('a', -10), CLAIM(2, -10)},
	{"released, not due yet", OUTCOME_IN_PROGRESS, CLAIM(1, -10), .retry_at = 5},
	{"released, due this moment", OUTCOME_RECOVERED, CLAIM(1, -10), .retry_at = 1},
	{"parked", OUTCOME_PARKED, CLAIM(1, -10), .parked_at = -10},
	{"parked, held elsewhere", OUTCOME_PARKED, .held_elsewhere = true, CLAIM(1, -10), .parked_at = -10},
	{"parked, another request", OUTCOME_MISMATCH, .request = 'b', CLAIM(1, -10), .claim = 'a', .parked_at = -10},
	{"the last attempt is at it", OUTCOME_IN_PROGRESS, CLAIM(3, 10), .max_attempts = 3},
	{"the last attempt has ended", OUTCOME_PARKED, CLAIM(3, 1), .max_attempts = 3},
	{"the last but one has ended", OUTCOME_RECOVERED, CLAIM(2, 1), .max_attempts = 3},
	{"attempts without end", OUTCOME_RECOVERED, CLAIM(1000, 1), .max_attempts = 0},
	{"a counter", OUTCOME_STARTED, CLAIM(1, -10), .reset_at = -10},
	{"a counter, held elsewhere", OUTCOME_IN_PROGRESS, .held_elsewhere = true, CLAIM(1, -10), .reset_at = -10},
	{"a counter, and the request is late", OUTCOME_EXPIRED, .by = SENT_BY_CALLER, .sent_at = -1000, CLAIM(1, -10), .reset_at = -10},
	{"finished beside a claim that is left", OUTCOME_REPLAYED, KEY(0, 10), CLAIM(1, 10)},
};

static void
check_outcomes(void)
{
	for (int i = 0; i < lengthof(outcome_cases); i++)
	{
		const OutcomeCase *c = &outcome_cases[i];
		Fingerprint given = fingerprint(c->request);
		RuleRequest request = {&given, {c->by, c->sent_at * S}, RETENTION * S};
		Stored		stored = {
			.other_name = c->other_name,
			.has_key = c->has_key,
			.key = {.fingerprint = fingerprint(c->key), .expires_at = c->expires_at * S, .shortened = c->shortened},
			.has_claim = c->has_claim,
			.claim = {
				.has_name = true, .fingerprint = fingerprint(c->claim), .attempt_no = c->attempt_no,
				.max_attempts = c->max_attempts, .lease_until = c->lease_until * S, .retry_at = c->retry_at * S,
				.parked_at = c->parked_at * S, .reset_at = c->reset_at * S
			}
		};

		is(c->what, rules_outcome(&request, &stored, !c->held_elsewhere, 1 * S), c->wanted);
		/* resume and begin agree on which claims are to be had */
		if (c->has_claim && !c->has_key && c->request == 0 && !c->held_elsewhere)
			is("    for resume too", rules_is_due(&stored.claim, 1 * S), c->wanted == OUTCOME_RECOVERED);
	}
}

/* When an answer expires --------------------------------------------------- */

typedef struct ExpiryCase
{
	const char *what;
	SentBy		by;
	int64		sent_at;
	int64		retention;
	int64		earliest;		/* before the rounding, which is less than 1/256 */
} ExpiryCase;

static const ExpiryCase expiry_cases[] = {
	{"retention after the finish", SENT_UNKNOWN, 0, 100 * S, 100 * S},
	{"an earlier first_sent does not shorten it", SENT_BY_CALLER, -50 * S, 100 * S, 100 * S},
	{"a later first_sent prolongs it", SENT_BY_CALLER, 50 * S, 100 * S, 150 * S},
	{"a key's own time within a retention prolongs it", SENT_BY_KEY, 100 * S, 100 * S, 200 * S},
	{"a key's own time beyond does not count", SENT_BY_KEY, 100 * S + 1, 100 * S, 100 * S},
	{"first_sent beyond counts for one retention", SENT_BY_CALLER, 1000 * S, 100 * S, 200 * S},
	{"a microsecond", SENT_UNKNOWN, 0, 1, 1},
	{"256 times a power of two", SENT_UNKNOWN, 0, 256 * 1024, 256 * 1024},
	{"before 2000", SENT_UNKNOWN, -(INT64CONST(1) << 50), 100 * S, 100 * S},
};

static void
check_expiry(void)
{
	for (int i = 0; i < lengthof(expiry_cases); i++)
	{
		const ExpiryCase *c = &expiry_cases[i];
		int64		end = rules_expires_at(0, (SentTime) {c->by, c->sent_at}, c->retention);
		int64		step = expiry_step(c->retention);

		is(c->what, end >= c->earliest && end < c->earliest + step && end % step == 0, true);
		is("    the step is the largest power of two that is at most 1/256",
		   (step & (step - 1)) == 0 && step <= Max(c->retention / 256, 1) && step * 2 > c->retention / 256, true);
	}
	is("before 2000 too it is rounded up", rules_expires_at(-1000 * S, (SentTime) {SENT_UNKNOWN}, 100 * S) >= -900 * S, true);
	is("the end of time is no overflow", rules_expires_at(END_TIMESTAMP - 10, (SentTime) {SENT_UNKNOWN}, 100 * S) < END_TIMESTAMP, true);
	is("nor is an endless retention", rules_expires_at(0, (SentTime) {SENT_UNKNOWN}, PG_INT64_MAX) < END_TIMESTAMP, true);
}

/* The rest ----------------------------------------------------------------- */

static void
check_numbers(void)
{
	Stored		stored = {.has_claim = true, .claim = {.lease_until = 90 * S, .retry_at = 0}};

	is("Retry-After of a live lease", rules_retry_after(&stored, 30 * S), 60);
	is("rounded up", rules_retry_after(&stored, 30 * S + 1), 60);
	stored.claim.retry_at = 200 * S;
	is("of a released claim, until it is due", rules_retry_after(&stored, 30 * S), 170);
	stored.claim.reset_at = 1;
	is("of a counter", rules_retry_after(&stored, 30 * S), 1);
	is("of a transaction", rules_retry_after(&(Stored) {0}, 30 * S), 1);

	is("the last of ten attempts", rules_last_attempt_no(1, 10), 10);
	is("counted from where the counter stood", rules_last_attempt_no(8, 10), 17);
	is("no last one", rules_last_attempt_no(1, 0), 0);
	is("none that int4 does not hold", rules_last_attempt_no(PG_INT32_MAX, 2), 0);

	is("backoff after the first attempt", rules_backoff(1, 60, 3600), 60);
	is("after the fourth", rules_backoff(4, 60, 3600), 480);
	is("at most the cap", rules_backoff(7, 60, 3600), 3600);
	is("a base above the cap", rules_backoff(1, 60, 30), 30);
	is("of very many", rules_backoff(PG_INT32_MAX, 60, 3600), 3600);
	is("without overflow", rules_backoff(100, PG_INT64_MAX / 2 + 1, PG_INT64_MAX), PG_INT64_MAX);

	is("released is ended", rules_attempt_is_ended(&(StoredClaim) {.retry_at = 1}), true);
	is("parked is ended", rules_attempt_is_ended(&(StoredClaim) {.parked_at = 1}), true);
	is("a lease that is over is not", rules_attempt_is_ended(&(StoredClaim) {.lease_until = 1}), false);
}

int
main(void)
{
	check_outcomes();
	check_expiry();
	check_numbers();
	printf("\n%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
