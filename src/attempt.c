/*-------------------------------------------------------------------------
 *
 * attempt.c
 *	  Attempts at the work of a key: begin, finish, release; a look from outside; removal.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "attempt.h"
#include "attempt_list.h"
#include "errors.h"
#include "settings.h"
#include "stats.h"

void
attempt_init(void)
{
	attempt_list_init();
	store_init();
}

/* Begin -------------------------------------------------------------------- */

/* An attempt of this transaction alone; nothing is written before finish. */
static void
start_here(const AttemptRequest *request, const Stored *stored,
		   TimestampTz now, AttemptResult *result)
{
	Attempt    *attempt = attempt_list_add(&request->name);

	Assert(keylock_is_held(&request->name.id));
	if (stored->has_claim)
		attempt->claim_no = stored->claim.attempt_no;
	attempt->attempt_no = attempt->claim_no + 1;
	attempt->delete_expired_first = stored->has_key;
	attempt->fingerprint = request->fingerprint;
	attempt->first_seen_at = now;
	attempt->retention = request->retention;
	attempt->sent = request->sent;

	result->attempt_no = attempt->attempt_no;
	result->first_seen_at = now;
	result->expires_at = rules_time_after(now, request->retention);
}

/* As above, going on where an attempt under lease was left. */
static void
recover_here(const AttemptRequest *request, const Stored *stored,
			 TimestampTz now, AttemptResult *result)
{
	const StoredClaim *claim = &stored->claim;
	Attempt    *attempt;

	start_here(request, stored, now, result);
	attempt = attempt_list_find_open(&request->name.id);
	if (claim->fingerprint.len > 0)
		attempt->fingerprint = claim->fingerprint;
	attempt->first_seen_at = claim->first_seen_at;
	attempt->retention = claim->retention;

	attempt_claim_to_result(claim, result);
	result->expires_at = rules_time_after(now, claim->retention);
}

static void
key_to_result(const StoredKey *key, AttemptResult *result)
{
	result->replayed = true;
	result->attempt_no = key->attempt_no;
	result->response = key->response;
	result->first_seen_at = key->first_seen_at;
	result->finished_at = key->finished_at;
	result->expires_at = key->expires_at;
}

static void
in_progress_to_result(const Stored *stored, TimestampTz now,
					  AttemptResult *result)
{
	result->retry_after = rules_retry_after(stored, now);
	if (!rules_is_claimed(stored))
		return;
	result->attempt_no = stored->claim.attempt_no;
	result->first_seen_at = stored->claim.first_seen_at;
}

static void
parked_to_result(const StoredClaim *claim, AttemptResult *result)
{
	attempt_claim_to_result(claim, result);
	result->attempt_no = claim->attempt_no;
}

/* Raise what the caller of begin must not work through. */
static void
check_outcome(Outcome outcome, const Stored *stored, TimestampTz now)
{
	switch (outcome)
	{
		case OUTCOME_MISMATCH:
			attempt_report_mismatch();
			break;
		case OUTCOME_IN_PROGRESS:
			lease_report_in_progress(stored, now);
			break;
		case OUTCOME_PARKED:
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_PARKED),
					 errmsg("idempotency key is parked"),
					 errdetail("The outcome of attempt %d is not known.",
							   stored->claim.attempt_no),
					 errhint("Settle it with idempotent_resolve, or hand it out once more with idempotent_retry.")));
			break;
		case OUTCOME_EXPIRED:
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_EXPIRED),
					 errmsg("request is older than the retention of its idempotency key"),
					 errdetail("Whether it was carried out can no longer be known."),
					 errhint("Find out by other means what became of the request before sending it under a new key.")));
			break;
		default:
			break;
	}
}

static void
check_not_open(const KeyName *name)
{
	if (attempt_list_find_open(&name->id) == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("idempotency attempt was already begun in this transaction"),
			 errhint("Finish or release it before the same key is begun again. Call the function in FROM: SELECT (f(...)).* calls it once for each column.")));
}

/*
 * Check what may only be judged once nothing is stored of the key: otherwise
 * a client whose clock or settings are wrong would not get its answer.
 */
static void
check_new_request(const AttemptRequest *request, TimestampTz now)
{
	const SentTime *sent = &request->sent;

	attempt_check_key_length(&request->name);
	if (sent->by != SENT_BY_CALLER)
		return;
	if (TIMESTAMP_NOT_FINITE(sent->at))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("first_sent must be finite"),
				 errhint("Leave it out where the time is not known.")));
	if (sent->at > rules_time_after(now, RULES_MAX_CLOCK_SKEW))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("first_sent is in the future"),
				 errdetail("It is more than a minute ahead of the server's clock.")));
}

static Outcome
determine_outcome(const AttemptRequest *request, const Stored *stored,
				  bool have_key_lock)
{
	RuleRequest rule = {&request->fingerprint, request->sent, request->retention};

	return rules_outcome(&rule, stored,
						 have_key_lock &&
						 !TransactionIdIsValid(stored->inserter.xid),
						 stored->read_at);
}

/*
 * Try to get the key's lock, then read the key.  If the lock is not available
 * its holder may merely be replaying, so read anyway: the key may already be
 * finished.  Expiry must be judged as of the read, both here and in the
 * caller: otherwise a key could expire between the two and we would proceed
 * without holding its lock.
 */
static bool
lock_and_read(const AttemptRequest *request, Stored *stored)
{
	const KeyId *id = &request->name.id;

	if (keylock_try(id))
	{
		attempt_read_after_writers(&request->name, request->mode, stored);
		return true;
	}

	store_read(&request->name, false, stored);
	if (request->mode == BEGIN_TRY ||
		determine_outcome(request, stored, false) != OUTCOME_IN_PROGRESS)
		return false;

	stats_count(STATS_WAITED, 1);
	keylock_wait(id);
	attempt_read_after_writers(&request->name, BEGIN_WAIT, stored);
	return true;
}

static void
count_outcome(Outcome outcome)
{
	static const StatsCounter counter_of[] = {
		[OUTCOME_STARTED] = STATS_STARTED,
		[OUTCOME_REPLAYED] = STATS_REPLAYED,
		[OUTCOME_RECOVERED] = STATS_RECOVERED,
		[OUTCOME_IN_PROGRESS] = STATS_IN_PROGRESS,
		[OUTCOME_PARKED] = STATS_IN_PROGRESS,
		[OUTCOME_MISMATCH] = STATS_MISMATCHES,
		[OUTCOME_EXPIRED] = STATS_EXPIRED,
	};

	stats_count(counter_of[outcome], 1);
}

/* Begin the attempt that the outcome allows; the key's lock is kept. */
static void
begin_work(const AttemptRequest *request, const Stored *stored,
		   AttemptResult *result)
{
	TimestampTz now = stored->read_at;

	Assert(keylock_is_held(&request->name.id));
	if (result->outcome == OUTCOME_STARTED && request->lease > 0)
		lease_claim(request, stored, now, result);
	else if (result->outcome == OUTCOME_STARTED)
		start_here(request, stored, now, result);
	else if (request->lease > 0)
		lease_take_over(request, &stored->claim, now, result);
	else
		recover_here(request, stored, now, result);
}

void
attempt_begin(const AttemptRequest *request, AttemptResult *result)
{
	Stored		stored;
	bool		have_key_lock;

	settings_check();
	check_not_open(&request->name);
	have_key_lock = lock_and_read(request, &stored);

	memset(result, 0, sizeof(*result));
	result->outcome = determine_outcome(request, &stored, have_key_lock);
	if (result->outcome == OUTCOME_STARTED ||
		result->outcome == OUTCOME_EXPIRED)
		check_new_request(request, stored.read_at);
	if (result->outcome == OUTCOME_RECOVERED)
		attempt_check_sees_work_of(&stored);
	count_outcome(result->outcome);
	switch (result->outcome)
	{
		case OUTCOME_STARTED:
		case OUTCOME_RECOVERED:
			begin_work(request, &stored, result);
			return;
		case OUTCOME_REPLAYED:
			key_to_result(&stored.key, result);
			break;
		case OUTCOME_IN_PROGRESS:
			in_progress_to_result(&stored, stored.read_at, result);
			break;
		case OUTCOME_PARKED:
			parked_to_result(&stored.claim, result);
			break;
		default:
			break;
	}
	if (have_key_lock)
		keylock_release(&request->name.id);
	if (request->mode == BEGIN_WAIT)
		check_outcome(result->outcome, &stored, stored.read_at);
}

/* Finish and release ------------------------------------------------------- */

/* A caller that names an attempt must mean this one. */
static void
check_attempt_no(const Attempt *attempt, int32 attempt_no)
{
	if (attempt_no == 0 || attempt_no == attempt->attempt_no)
		return;
	stats_count(STATS_OVERTAKEN, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_OVERTAKEN),
			 errmsg("attempt %d is not the idempotency key's current attempt",
					attempt_no),
			 errhint("Pass the attempt number that begin returned.")));
}

/*
 * The row of a batch's key was written at begin and may have expired since:
 * then another transaction may be replacing it.
 */
static void
check_row_not_expired(const Attempt *attempt, TimestampTz now)
{
	if (attempt->row_expires_at > now)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("idempotency key of a batch has expired before it was finished"),
			 errhint("The retention of a batch must be longer than its transaction.")));
}

/*
 * Insert the key's finished row, and end its claim if the attempt recovered
 * one.  The key expires as of this moment, not as of begin (I11).
 */
static void
finish_here(Attempt *attempt, const KeyName *name, const Response *response,
			int64 retention)
{
	StoredKey	key;

	attempt_check_size(response);
	memset(&key, 0, sizeof(key));
	key.fingerprint = attempt->fingerprint;
	key.attempt_no = attempt->attempt_no;
	key.first_seen_at = attempt->first_seen_at;
	key.finished_at = GetCurrentTimestamp();
	key.shortened = retention > 0 && retention < attempt->retention;
	key.expires_at = rules_expires_at(key.finished_at, attempt->sent,
									  retention > 0 ? retention :
									  attempt->retention);
	key.response = *response;

	if (attempt->row_inserted_at_begin)
	{
		check_row_not_expired(attempt, key.finished_at);
		(void) store_delete_key(name);
	}
	if (attempt->claim_no > 0)
		lease_delete_claim(name, attempt->claim_no);
	store_insert_key(name, &key, attempt->delete_expired_first);
	attempt_list_mark_ended(attempt);
}

/* The hint depends on what this caller did instead of begin. */
pg_noreturn static void
report_no_attempt(const KeyName *name, bool under_lease)
{
	Stored		stored;
	const char *hint = "Call idempotent_begin before the work, in the same transaction.";

	store_read(name, false, &stored);
	if (under_lease || rules_is_claimed(&stored))
		hint = "An attempt under lease is finished by its number: idempotent_finish(..., attempt => n).";
	else if (stored.has_key && !rules_key_is_expired(&stored.key, stored.read_at))
		hint = "The key is finished. Where idempotent_begin returns replayed, return its response and call neither the work nor idempotent_finish.";
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("idempotency attempt was not begun in this transaction"),
			 errhint("%s", hint)));
}

void
attempt_finish(const KeyName *name, const Response *response,
			   int32 attempt_no, int64 retention)
{
	Attempt    *attempt = attempt_list_find_open(&name->id);

	if (attempt != NULL && !attempt->under_lease)
	{
		check_attempt_no(attempt, attempt_no);
		finish_here(attempt, name, response, retention);
	}
	else if (attempt_no > 0)
		lease_finish(name, response, attempt_no, retention);
	else
		report_no_attempt(name, attempt != NULL);
	stats_count(STATS_FINISHED, 1);
}

static void
release_here(Attempt *attempt, const KeyName *name, const ReleaseTerms *terms)
{
	if (attempt->row_inserted_at_begin)
		(void) store_delete_key(name);
	if (attempt->claim_no > 0)
		lease_release_recovered(name, attempt->claim_no, attempt->attempt_no,
								terms);
	attempt_list_mark_ended(attempt);
}

bool
attempt_release(const KeyName *name, int32 attempt_no,
				const ReleaseTerms *terms)
{
	Attempt    *attempt = attempt_list_find_open(&name->id);

	if (attempt != NULL && !attempt->under_lease)
	{
		check_attempt_no(attempt, attempt_no);
		release_here(attempt, name, terms);
	}
	else if (attempt_no > 0)
		lease_release(name, attempt_no, terms);
	else
	{
		store_check_tables(name->schema);
		return false;
	}
	stats_count(STATS_RELEASED, 1);
	return true;
}

/* Lookup ------------------------------------------------------------------- */

/* Of a claim, begin's own number and all that its last attempt left. */
static void
claim_to_lookup(const Stored *stored, AttemptResult *result)
{
	const StoredClaim *claim = &stored->claim;

	attempt_claim_to_result(claim, result);
	result->attempt_no = claim->attempt_no;
	if (result->outcome == OUTCOME_RECOVERED)
		result->attempt_no++;
	result->expires_at = rules_time_after(stored->read_at, claim->retention);
	if (result->outcome == OUTCOME_IN_PROGRESS)
		result->retry_after = rules_retry_after(stored, stored->read_at);
}

bool
attempt_lookup(const AttemptRequest *request, AttemptResult *result)
{
	Attempt    *own = attempt_list_find_open(&request->name.id);
	Stored		stored;
	bool		idle;

	/*
	 * Ask for the lock first: an attempt that finishes in between is then
	 * seen as finished, rather than as neither.
	 */
	idle = !keylock_held_elsewhere(&request->name.id) && own == NULL;
	store_read(&request->name, false, &stored);
	if (own != NULL && own->row_inserted_at_begin)
		stored.has_key = false; /* its row, but not finished yet */

	memset(result, 0, sizeof(*result));
	result->outcome = determine_outcome(request, &stored, idle);
	if (result->outcome == OUTCOME_STARTED)
		return false;
	if (result->outcome == OUTCOME_REPLAYED)
		key_to_result(&stored.key, result);
	else if (rules_is_claimed(&stored) && !stored.other_name)
		claim_to_lookup(&stored, result);
	else if (result->outcome == OUTCOME_IN_PROGRESS)
		in_progress_to_result(&stored, stored.read_at, result);
	return true;
}

/* Removal ------------------------------------------------------------------ */

/*
 * Leave only the attempt number of a claim, so that its worker, should it
 * still be on its way, is fenced.
 */
static bool
forget_claim(const KeyName *name, StoredClaim *claim)
{
	StoredClaim counter = {0};

	if (claim->reset_at != 0 && !claim->has_name)
		return false;
	counter.attempt_no = claim->attempt_no;
	counter.max_attempts = claim->max_attempts;
	counter.retention = claim->retention;
	counter.lease = claim->lease;
	counter.first_seen_at = claim->first_seen_at;
	counter.claimed_at = claim->claimed_at;
	counter.lease_until = Min(claim->lease_until, GetCurrentTimestamp());
	counter.reset_at = claim->reset_at != 0 ? claim->reset_at :
		GetCurrentTimestamp();
	store_update_claim(name, &counter, claim->attempt_no);
	return true;
}

static void
check_not_in_open_batch(const KeyName *name)
{
	Attempt    *own = attempt_list_find_open(&name->id);

	if (own != NULL && own->row_inserted_at_begin)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency key is of a batch that this transaction has begun and not finished"),
				 errhint("Finish it, or give it up with idempotent_release.")));
}

/* Forget a key whose lock is ours and whose name has been compared. */
static bool
forget_stored(const KeyName *name, Stored *stored)
{
	bool		key = store_delete_key(name);
	bool		claim;

	/* With a key that has not expired, a claim was not looked for. */
	if (stored->has_key && !stored->has_claim)
		store_read(name, true, stored);
	claim = stored->has_claim && forget_claim(name, &stored->claim);
	return key || claim;
}

bool
attempt_forget(const KeyName *name)
{
	Stored		stored;
	bool		forgotten;

	check_not_in_open_batch(name);
	attempt_lock_and_read(name, &stored);
	forgotten = forget_stored(name, &stored);
	return store_delete_corrections(name) || forgotten;
}

int64
attempt_forget_scope(Oid schema, text *scope, int32 max_keys)
{
	KeyName    *names;
	int			found;
	int64		forgotten = 0;

	store_check_tables(schema);
	found = store_find_scope(schema, scope, max_keys, &names);
	for (int i = 0; i < found; i++)
	{
		Stored		stored;

		CHECK_FOR_INTERRUPTS();
		check_not_in_open_batch(&names[i]);
		attempt_lock_and_read(&names[i], &stored);
		forgotten += forget_stored(&names[i], &stored);

		/*
		 * The lock table does not hold as many locks as a scope has keys.  A
		 * key whose row is being deleted is replayed until that commits; a
		 * claim that is being changed needs its lock.
		 */
		if (!stored.has_claim)
			keylock_release(&names[i].id);
	}
	store_delete_scope_corrections(schema, scope);
	return forgotten;
}

int64
attempt_prune(Oid schema, int32 max_keys)
{
	int64		removed;

	store_check_tables(schema);
	removed = store_prune(schema, max_keys);
	store_prune_counters(schema);
	store_prune_corrections(schema, settings_corrections_retention());
	stats_count(STATS_PRUNED, removed);
	return removed;
}
