/*-------------------------------------------------------------------------
 *
 * attempt.c
 *	  Attempts at the work of a key: begin, finish, release, lookup, forget.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "common/int.h"
#include "utils/timestamp.h"

#include "attempt.h"
#include "attempt_lease.h"
#include "attempt_list.h"
#include "errors.h"
#include "stats.h"
#include "timespan.h"

void
attempt_init(void)
{
	attempt_list_init();
}

TimestampTz
time_after(TimestampTz start, int64 span, const char *what)
{
	TimestampTz end;

	if (pg_add_s64_overflow(start, span, &end) || !IS_VALID_TIMESTAMP(end))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s is too long", what)));
	return end;
}

/* Is there a key that is still honoured?  Expired ones count as absent. */
static bool
key_is_honoured(const Stored *stored, TimestampTz now)
{
	return stored->has_key && stored->key.expires_at > now;
}

static bool
lease_is_live(const Stored *stored, TimestampTz now)
{
	return stored->has_claim && stored->claim.lease_until > now;
}

bool
attempt_is_too_late(TimestampTz sent_at, int64 retention, TimestampTz now)
{
	TimestampTz oldest;

	return !pg_sub_s64_overflow(now, retention, &oldest) && sent_at <= oldest;
}

/*
 * What begin has to say, given what is stored.  locked: the key's lock is
 * ours, so that what is stored is all there is, but for what a batch is
 * inserting; otherwise a transaction is at work on the key.
 */
static Outcome
decide(const AttemptRequest *request, const Stored *stored, bool locked,
	   TimestampTz now)
{
	bool		alone = locked && !TransactionIdIsValid(stored->inserter.xid);

	if (key_is_honoured(stored, now))
		return fingerprint_differs(&stored->key.fingerprint,
								   &request->fingerprint) ?
			OUTCOME_MISMATCH : OUTCOME_REPLAYED;
	if (stored->has_claim &&
		fingerprint_differs(&stored->claim.fingerprint, &request->fingerprint))
		return OUTCOME_MISMATCH;
	if (!alone || lease_is_live(stored, now))
		return OUTCOME_IN_PROGRESS;
	if (stored->has_claim)
		return OUTCOME_RECOVERED;
	if (request->has_sent_at &&
		attempt_is_too_late(request->sent_at, request->retention, now))
		return OUTCOME_EXPIRED;
	return OUTCOME_STARTED;
}

static void
answer_replay(const StoredKey *key, AttemptResult *result)
{
	result->replayed = true;
	result->attempt = key->attempt;
	result->response = key->response;
	result->first_seen_at = key->first_seen_at;
	result->finished_at = key->finished_at;
	result->expires_at = key->expires_at;
}

/* A transaction says nothing about its end: the client may ask again soon. */
static void
answer_in_progress(const Stored *stored, TimestampTz now,
				   AttemptResult *result)
{
	result->retry_after = timespan_retry_after(0);
	if (!stored->has_claim)
		return;
	result->attempt = stored->claim.attempt;
	result->first_seen_at = stored->claim.first_seen_at;
	if (lease_is_live(stored, now))
		result->retry_after = timespan_retry_after(stored->claim.lease_until - now);
}

/* An attempt of this transaction alone; nothing is written before finish. */
static void
start_here(const AttemptRequest *request, const Stored *stored,
		   TimestampTz now, AttemptResult *result)
{
	TimestampTz expires_at = time_after(now, request->retention, "retention");
	Attempt    *attempt = attempt_list_add(&request->name);

	attempt->number = 1;
	attempt->locked = true;
	attempt->replaces_expired = stored->has_key;
	attempt->fingerprint = request->fingerprint;
	attempt->first_seen_at = now;
	attempt->expires_at = expires_at;

	result->attempt = attempt->number;
	result->first_seen_at = attempt->first_seen_at;
	result->expires_at = attempt->expires_at;
}

/* As above, going on where an attempt under lease was left. */
static void
recover_here(const AttemptRequest *request, const Stored *stored,
			 AttemptResult *result)
{
	const StoredClaim *claim = &stored->claim;
	Attempt    *attempt = attempt_list_add(&request->name);

	attempt->number = claim->attempt + 1;
	attempt->took_claim = true;
	attempt->locked = true;
	attempt->replaces_expired = stored->has_key;
	attempt->fingerprint = claim->fingerprint.len > 0 ?
		claim->fingerprint : request->fingerprint;
	attempt->first_seen_at = claim->first_seen_at;
	attempt->expires_at = time_after(claim->first_seen_at, claim->retention,
									 "retention");

	result->attempt = attempt->number;
	result->checkpoint = claim->checkpoint;
	result->state = claim->state;
	result->first_seen_at = attempt->first_seen_at;
	result->expires_at = attempt->expires_at;
}

/* Raise what the caller of begin must not work through. */
static void
refuse(const AttemptRequest *request, const Stored *stored,
	   const AttemptResult *result)
{
	switch (result->outcome)
	{
		case OUTCOME_MISMATCH:
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_MISMATCH),
					 errmsg("idempotency key was already used with a different request"),
					 errhint("Send a new key with a new request, and a retry with the same content as the first.")));
			break;
		case OUTCOME_IN_PROGRESS:
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
					 errmsg("idempotency key is in use by another attempt"),
					 errdetail("Attempt %d has held it since %s, until %s.",
							   stored->claim.attempt,
							   pstrdup(timestamptz_to_str(stored->claim.claimed_at)),
							   pstrdup(timestamptz_to_str(stored->claim.lease_until))),
					 errhint("Retry in %d s.", result->retry_after)));
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
refuse_second_begin(const AttemptRequest *request)
{
	if (attempt_list_open(&request->name.id) == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("idempotency attempt was already begun in this transaction"),
			 errhint("Finish or release it before the same key is begun again. Call the function in FROM: SELECT (f(...)).* calls it once for each column.")));
}

/*
 * Read what is stored of a key whose lock is ours.  A large batch inserts its
 * rows without the keys' locks: wait for its end.
 */
static void
read_in_turn(const KeyName *name, bool wait, Stored *stored)
{
	store_read(name, true, stored);
	while (wait && TransactionIdIsValid(stored->inserter.xid))
	{
		stats_count(STATS_WAITED, 1);
		store_wait_for(&stored->inserter);
		store_read(name, true, stored);
	}
}

/*
 * Get the key's lock if that can be had, and read what is stored once it is
 * ours.  Whoever replays holds the lock for a moment only, so a lock that is
 * taken says little: what is stored by then may answer already.
 *
 * What was read is judged by the time of reading, here and by the caller, who
 * must not find that a key has expired in between, with no lock to act on it.
 */
static bool
lock_and_read(const AttemptRequest *request, Stored *stored)
{
	const KeyId *id = &request->name.id;
	Outcome		outcome;

	if (keylock_try(id))
	{
		read_in_turn(&request->name, request->wait, stored);
		return true;
	}

	store_read(&request->name, false, stored);
	outcome = decide(request, stored, false, stored->read_at);
	if (!request->wait || outcome != OUTCOME_IN_PROGRESS)
		return false;

	stats_count(STATS_WAITED, 1);
	keylock_wait(id);
	read_in_turn(&request->name, true, stored);
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
		[OUTCOME_MISMATCH] = STATS_MISMATCHES,
		[OUTCOME_EXPIRED] = STATS_EXPIRED,
	};

	stats_count(counter_of[outcome], 1);
}

void
attempt_begin(const AttemptRequest *request, AttemptResult *result)
{
	Stored		stored;
	TimestampTz now;
	bool		locked;

	refuse_second_begin(request);
	locked = lock_and_read(request, &stored);
	now = stored.read_at;

	memset(result, 0, sizeof(*result));
	result->outcome = decide(request, &stored, locked, now);
	count_outcome(result->outcome);
	switch (result->outcome)
	{
		case OUTCOME_STARTED:
			if (request->lease > 0)
				lease_claim(request, &stored, now, result);
			else
				start_here(request, &stored, now, result);
			return;				/* the lock is kept */
		case OUTCOME_RECOVERED:
			if (request->lease > 0)
				lease_take_over(request, &stored.claim, now, result);
			else
				recover_here(request, &stored, result);
			return;				/* the lock is kept */
		case OUTCOME_REPLAYED:
			answer_replay(&stored.key, result);
			break;
		case OUTCOME_IN_PROGRESS:
			answer_in_progress(&stored, now, result);
			break;
		default:
			break;
	}
	if (locked)
		keylock_release(&request->name.id);
	if (request->wait)
		refuse(request, &stored, result);
}

/* A caller that names an attempt must mean this one. */
static void
check_number(const Attempt *attempt, int32 number)
{
	if (number == 0 || number == attempt->number)
		return;
	stats_count(STATS_OVERTAKEN, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_OVERTAKEN),
			 errmsg("attempt %d is not the idempotency key's current attempt",
					number),
			 errhint("Pass the attempt number that begin returned.")));
}

static int64
size_of(const void *value)
{
	return value == NULL ? 0 : VARSIZE_ANY_EXHDR(value);
}

void
attempt_check_size(const Response *response, int max)
{
	int64		size = size_of(response->response) +
		size_of(response->headers) + size_of(response->body);

	if (max > 0 && size > max)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_TOO_LARGE),
				 errmsg("response is too large to be stored"),
				 errdetail("It has %lld bytes, and %s is %d bytes.",
						   (long long) size, "idempotency.max_response_size",
						   max),
				 errhint("Store the response elsewhere and keep a reference to it with the key.")));
}

static void
finish_here(Attempt *attempt, const KeyName *name, const Response *response)
{
	StoredKey	key;

	key.fingerprint = attempt->fingerprint;
	key.attempt = attempt->number;
	key.first_seen_at = attempt->first_seen_at;
	key.finished_at = GetCurrentTimestamp();
	key.expires_at = attempt->expires_at;
	key.response = *response;

	if (attempt->inserted)
		(void) store_delete_key(name);
	store_insert_key(name, &key, attempt->replaces_expired);
	if (attempt->took_claim)
		(void) store_delete_claim(name);
	attempt_list_end(attempt);
}

void
attempt_finish(const KeyName *name, const Response *response, int32 number)
{
	Attempt    *attempt = attempt_list_open(&name->id);

	if (attempt != NULL && !attempt->leased)
	{
		check_number(attempt, number);
		finish_here(attempt, name, response);
		stats_count(STATS_FINISHED, 1);
		return;
	}
	if (number == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency attempt was not begun in this transaction"),
				 errhint("Call idempotent_begin before the work, in the same transaction. An attempt under lease is finished by its number: idempotent_finish(..., attempt => n).")));
	lease_finish(name, response, number);
	stats_count(STATS_FINISHED, 1);
	if (attempt != NULL)
		attempt_list_end(attempt);
}

bool
attempt_release(const KeyName *name, int32 number, text *error,
				int64 retry_after)
{
	Attempt    *attempt = attempt_list_open(&name->id);

	if (attempt != NULL && !attempt->leased)
	{
		bool		told;

		check_number(attempt, number);
		if (attempt->inserted)
			(void) store_delete_key(name);
		told = attempt->took_claim && (error != NULL || retry_after >= 0);
		if (told)
			lease_release_taken(name, attempt->number, error, retry_after);
		attempt_list_end(attempt);
		stats_count(STATS_RELEASED, 1);

		/*
		 * The lock must stay where something was written under it, and in a
		 * deeper subtransaction, whose ROLLBACK would make the attempt open
		 * again.  It ends with the transaction then.
		 */
		if (attempt->locked && !attempt->inserted && !told &&
			attempt_list_begun_here(attempt))
			keylock_release(&name->id);
		return true;
	}
	if (number == 0)
		return false;
	lease_release(name, number, error, retry_after);
	stats_count(STATS_RELEASED, 1);
	if (attempt != NULL)
		attempt_list_end(attempt);
	return true;
}

bool
attempt_lookup(const AttemptRequest *request, AttemptResult *result)
{
	Attempt    *own = attempt_list_open(&request->name.id);
	Stored		stored;
	TimestampTz now;
	bool		idle;

	/*
	 * Ask for the lock first: an attempt that finishes in between is then
	 * seen as finished, rather than as neither.
	 */
	idle = !keylock_held_elsewhere(&request->name.id) && own == NULL;
	store_read(&request->name, false, &stored);
	if (own != NULL && own->inserted)
		stored.has_key = false; /* its row, but not finished yet */
	now = stored.read_at;

	memset(result, 0, sizeof(*result));
	result->outcome = decide(request, &stored, idle, now);
	switch (result->outcome)
	{
		case OUTCOME_REPLAYED:
			answer_replay(&stored.key, result);
			return true;
		case OUTCOME_RECOVERED:
			result->attempt = stored.claim.attempt + 1;
			result->checkpoint = stored.claim.checkpoint;
			result->state = stored.claim.state;
			result->first_seen_at = stored.claim.first_seen_at;
			result->expires_at = time_after(stored.claim.first_seen_at,
											stored.claim.retention, "retention");
			return true;
		case OUTCOME_IN_PROGRESS:
			answer_in_progress(&stored, now, result);
			return true;
		case OUTCOME_EXPIRED:
			return true;
		default:
			return false;
	}
}

bool
attempt_forget(const KeyName *name)
{
	Attempt    *own = attempt_list_open(&name->id);
	Stored		stored;
	bool		key;
	bool		claim;

	if (own != NULL && own->inserted)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency key is of a batch that this transaction has begun and not finished"),
				 errhint("Finish it, or give it up with idempotent_release.")));
	keylock_wait(&name->id);
	read_in_turn(name, true, &stored);
	key = store_delete_key(name);
	claim = store_delete_claim(name);
	return key || claim;
}
