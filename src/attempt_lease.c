/*-------------------------------------------------------------------------
 *
 * attempt_lease.c
 *	  Attempts under lease: claim, checkpoint, takeover, finish, release, park.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "attempt_lease.h"
#include "attempt_list.h"
#include "errors.h"
#include "settings.h"
#include "stats.h"

/* How many candidates resume looks at in one go. */
#define RESUME_BATCH 100

/*
 * For a key's next try: Stripe's and everyone's exponential backoff, from a
 * minute to an hour.
 */
#define BACKOFF_BASE USECS_PER_MINUTE
#define BACKOFF_CAP USECS_PER_HOUR

/*
 * List the attempt, so that a second begin in the claiming transaction is
 * misuse, as it is without a lease.  The guard lets such an attempt commit.
 */
static void
list_under_lease(const KeyName *name, int32 attempt_no)
{
	Attempt    *attempt = attempt_list_add(name);

	attempt->attempt_no = attempt_no;
	attempt->under_lease = true;
}

/* End the attempt that this transaction began under lease, if it did. */
static void
mark_own_ended(const KeyName *name)
{
	Attempt    *attempt = attempt_list_find_open(&name->id);

	if (attempt != NULL)
		attempt_list_mark_ended(attempt);
}

static char *
time_string(TimestampTz time)
{
	return pstrdup(timestamptz_to_str(time));
}

void
lease_report_in_progress(const Stored *stored, TimestampTz now)
{
	const StoredClaim *claim = &stored->claim;
	char	   *detail;

	if (rules_lease_is_live(claim, now))
		detail = psprintf("Attempt %d has held it since %s, until %s.",
						  claim->attempt_no, time_string(claim->claimed_at),
						  time_string(claim->lease_until));
	else
		detail = psprintf("Attempt %d was released at %s, and the next one is due at %s.",
						  claim->attempt_no, time_string(claim->lease_until),
						  time_string(claim->retry_at));
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
			 errmsg("idempotency key is in use by another attempt"),
			 errdetail_internal("%s", detail),
			 errhint("Retry in %d s.", rules_retry_after(stored, now))));
}

void
lease_report_overtaken(int32 attempt_no, const char *reason)
{
	stats_count(STATS_OVERTAKEN, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_OVERTAKEN),
			 errmsg("attempt %d no longer holds the idempotency key", attempt_no),
			 errdetail_internal("%s", reason),
			 errhint("Roll back what this attempt has done and begin again: begin returns where the key stands.")));
}

/* Fill in a claim that is made for this request now. */
static void
form_claim(const AttemptRequest *request, int32 attempt_no, TimestampTz now,
		   StoredClaim *claim)
{
	memset(claim, 0, sizeof(*claim));
	claim->has_name = true;
	claim->fingerprint = request->fingerprint;
	claim->request = request->request;
	claim->attempt_no = attempt_no;
	claim->max_attempts = rules_last_attempt_no(attempt_no,
												settings_max_attempts);
	claim->retention = request->retention;
	claim->lease = request->lease;
	claim->first_seen_at = now;
	claim->claimed_at = now;
	claim->lease_until = rules_time_after(now, request->lease);
}

/*
 * If the key's expired row or a counter is still stored, attempt numbers
 * continue from it: a worker that slept through the expiry or the eviction
 * must not hold a number that is given out again.
 */
void
lease_claim(const AttemptRequest *request, const Stored *stored,
			TimestampTz now, AttemptResult *result)
{
	int32		last = stored->has_key ? stored->key.attempt_no : 0;
	StoredClaim claim;

	Assert(!rules_is_claimed(stored));
	if (stored->has_claim)
		last = Max(last, stored->claim.attempt_no);
	form_claim(request, last + 1, now, &claim);
	if (stored->has_claim)
		store_update_claim(&request->name, &claim, stored->claim.attempt_no);
	else
		store_insert_claim(&request->name, &claim);
	list_under_lease(&request->name, claim.attempt_no);

	result->attempt_no = claim.attempt_no;
	result->first_seen_at = now;
	result->expires_at = rules_time_after(now, request->retention);
}

/* Take the next attempt's hold on a claim that the caller has locked and read. */
static void
take_claim(const KeyName *name, StoredClaim *claim, int64 lease,
		   TimestampTz now)
{
	int32		replaced_no = claim->attempt_no++;

	claim->lease = lease;
	claim->claimed_at = now;
	claim->lease_until = rules_time_after(now, lease);
	claim->retry_at = 0;
	claim->parked_at = 0;
	store_update_claim(name, claim, replaced_no);
	list_under_lease(name, claim->attempt_no);
}

void
lease_take_over(const AttemptRequest *request, const StoredClaim *claim,
				TimestampTz now, AttemptResult *result)
{
	StoredClaim taken = *claim;

	/* If the first attempt had no request to compare, this one's is kept. */
	if (taken.fingerprint.len == 0)
		taken.fingerprint = request->fingerprint;
	if (taken.request == NULL)
		taken.request = request->request;
	take_claim(&request->name, &taken, request->lease, now);
	attempt_claim_to_result(&taken, result);
	result->attempt_no = taken.attempt_no;
	result->expires_at = rules_time_after(now, taken.retention);
}

/*
 * Lock the key and read its claim, which must be this attempt's.  A lease that
 * has ended but was not taken over is still the attempt's own; an attempt that
 * was released or parked is over, unless may_be_ended.
 */
static void
read_own_claim(const KeyName *name, int32 attempt_no, bool may_be_ended,
			   Stored *stored)
{
	attempt_lock_and_read(name, stored);
	if (!stored->has_claim)
		lease_report_overtaken(attempt_no, "The key has been finished or forgotten.");
	if (stored->claim.attempt_no != attempt_no)
		lease_report_overtaken(attempt_no, "Another attempt has taken the key over.");
	if (!rules_is_claimed(stored))
		lease_report_overtaken(attempt_no, "The key has been released or forgotten.");
	if (!may_be_ended && rules_attempt_is_ended(&stored->claim))
		lease_report_overtaken(attempt_no, "The attempt has been released or parked.");
}

void
lease_delete_claim(const KeyName *name, int32 claim_no)
{
	Stored		stored;

	if (store_delete_claim(name, claim_no))
		return;
	store_read(name, true, &stored);
	if (stored.has_claim)
		lease_report_overtaken(claim_no, "Another attempt has taken the key over.");
}

void
lease_finish(const KeyName *name, const Response *response, int32 attempt_no,
			 int64 retention)
{
	Stored		stored;
	StoredKey	key;

	read_own_claim(name, attempt_no, false, &stored);
	attempt_check_size(response);
	memset(&key, 0, sizeof(key));
	key.fingerprint = stored.claim.fingerprint;
	key.attempt_no = attempt_no;
	key.first_seen_at = stored.claim.first_seen_at;
	key.finished_at = GetCurrentTimestamp();
	key.shortened = retention > 0 && retention < stored.claim.retention;
	key.expires_at = rules_expires_at(key.finished_at,
									  attempt_sent_by_key(name->key),
									  retention > 0 ? retention :
									  stored.claim.retention);
	key.response = *response;

	lease_delete_claim(name, attempt_no);
	store_insert_key(name, &key, stored.has_key);
	mark_own_ended(name);
}

/* Write the end of an attempt to its claim, under the attempt's own number. */
static void
write_release(const KeyName *name, StoredClaim *claim, int32 attempt_no,
			  const ReleaseTerms *terms)
{
	TimestampTz now = GetCurrentTimestamp();
	int32		replaced_no = claim->attempt_no;
	int64		delay = terms->retry_after >= 0 ? terms->retry_after :
		rules_backoff(attempt_no, BACKOFF_BASE, BACKOFF_CAP);

	claim->attempt_no = attempt_no;
	claim->lease_until = now;
	if (terms->reset)
	{
		claim->fingerprint.len = 0;
		claim->request = NULL;
		claim->checkpoint = NULL;
		claim->state = NULL;
		claim->last_error = NULL;
		claim->retry_at = 0;
		claim->reset_at = now;
	}
	else
	{
		claim->last_error = terms->error;
		claim->retry_at = rules_time_after(now, delay);
		if (claim->max_attempts > 0 && attempt_no >= claim->max_attempts)
			stats_count(STATS_PARKED, 1);
	}
	store_update_claim(name, claim, replaced_no);
}

void
lease_release(const KeyName *name, int32 attempt_no, const ReleaseTerms *terms)
{
	Stored		stored;

	read_own_claim(name, attempt_no, false, &stored);
	write_release(name, &stored.claim, attempt_no, terms);
	mark_own_ended(name);
}

void
lease_release_recovered(const KeyName *name, int32 claim_no, int32 attempt_no,
						const ReleaseTerms *terms)
{
	Stored		stored;

	Assert(attempt_no > claim_no);
	store_read(name, true, &stored);
	if (!rules_is_claimed(&stored) || stored.claim.attempt_no != claim_no)
		return;
	if (terms->error == NULL && terms->retry_after < 0 && !terms->reset)
		return;
	write_release(name, &stored.claim, attempt_no, terms);
}

static void
check_under_lease(const KeyName *name)
{
	Attempt    *attempt = attempt_list_find_open(&name->id);

	if (attempt != NULL && !attempt->under_lease)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency attempt has no lease"),
				 errhint("Checkpoint and park are for work that spans transactions: begin it with lease => '...'.")));
}

TimestampTz
lease_checkpoint(const KeyName *name, int32 attempt_no, text *checkpoint,
				 Jsonb *state, int64 lease)
{
	Stored		stored;
	StoredClaim *claim = &stored.claim;

	check_under_lease(name);
	read_own_claim(name, attempt_no, false, &stored);
	if (checkpoint != NULL)
	{
		claim->checkpoint = checkpoint;
		claim->state = state;
	}
	if (lease > 0)
		claim->lease = lease;
	claim->lease_until = rules_time_after(GetCurrentTimestamp(), claim->lease);
	store_update_claim(name, claim, attempt_no);
	return claim->lease_until;
}

void
lease_park(const KeyName *name, int32 attempt_no, text *error)
{
	Stored		stored;
	StoredClaim *claim = &stored.claim;
	TimestampTz now;

	check_under_lease(name);
	read_own_claim(name, attempt_no, true, &stored);
	now = GetCurrentTimestamp();
	claim->last_error = error;
	claim->lease_until = Min(claim->lease_until, now);
	claim->retry_at = 0;
	claim->parked_at = now;
	store_update_claim(name, claim, attempt_no);
	stats_count(STATS_PARKED, 1);
	mark_own_ended(name);
}

/* Take a claim over and hand it to its new worker. */
static void
hand_out(const KeyName *name, StoredClaim *claim, int64 lease,
		 TimestampTz now, ClaimReceiver receive, void *arg)
{
	take_claim(name, claim, lease, now);
	claim->request = attempt_detoast(claim->request);
	claim->state = attempt_detoast(claim->state);
	stats_count(STATS_RECOVERED, 1);
	receive(name, claim, arg);
}

/*
 * Take one candidate over.  Pass over a key that another session has locked,
 * one that is no longer due, and one whose checkpoint's work this transaction's
 * snapshot does not show (I9).
 */
static bool
resume_one(const KeyName *name, int64 lease, ClaimReceiver receive, void *arg)
{
	Stored		stored;
	TimestampTz now;

	if (attempt_list_find_open(&name->id) != NULL || !keylock_try(&name->id))
		return false;
	store_read(name, true, &stored);
	now = stored.read_at;
	if (TransactionIdIsValid(stored.inserter.xid) || stored.other_name ||
		!rules_is_claimed(&stored) || !rules_is_due(&stored.claim, now) ||
		!attempt_sees_work_of(&stored))
	{
		keylock_release(&name->id);
		return false;
	}
	hand_out(name, &stored.claim, lease, now, receive, arg);
	return true;
}

void
lease_resume(Oid schema, text *scope, int32 max_keys, int64 lease,
			 ClaimReceiver receive, void *arg)
{
	int			resumed = 0;
	int			passed_over = 0;

	store_check_tables(schema);
	while (resumed < max_keys)
	{
		int			wanted = Min(RESUME_BATCH, max_keys - resumed);
		KeyName    *names;
		int			found;

		found = store_find_due(schema, scope, passed_over, wanted, &names);
		if (found == 0)
			break;
		for (int i = 0; i < found; i++)
		{
			CHECK_FOR_INTERRUPTS();
			if (resume_one(&names[i], lease, receive, arg))
				resumed++;
			else
				passed_over++;
		}
	}
}

void
lease_retry(const KeyName *name, int64 lease, ClaimReceiver receive, void *arg)
{
	Stored		stored;
	TimestampTz now;

	if (attempt_list_find_open(&name->id) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency attempt was already begun in this transaction"),
				 errhint("Finish or release it before the same key is handed out again.")));
	attempt_lock_and_read(name, &stored);
	now = stored.read_at;
	if (!rules_is_claimed(&stored))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_OVERTAKEN),
				 errmsg("idempotency key has no claim that could be handed out"),
				 errdetail("The key has been finished or forgotten, or was never under lease.")));
	if (rules_lease_is_live(&stored.claim, now))
		lease_report_in_progress(&stored, now);
	attempt_check_sees_work_of(&stored);
	hand_out(name, &stored.claim, lease, now, receive, arg);
}
