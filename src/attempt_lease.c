/*-------------------------------------------------------------------------
 *
 * attempt_lease.c
 *	  Attempts under lease: claim, checkpoint, takeover, finish, release,
 *	  resume.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "common/int.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "attempt.h"
#include "attempt_lease.h"
#include "attempt_list.h"
#include "errors.h"
#include "stats.h"

/* How many candidates resume looks at in one go. */
#define RESUME_BATCH 100

/*
 * For a key's next try: Stripe's and everyone's exponential backoff, from a
 * minute to an hour.
 */
#define BACKOFF_BASE USECS_PER_MINUTE
#define BACKOFF_CAP USECS_PER_HOUR

int64
attempt_backoff(int32 attempt, int64 base, int64 cap)
{
	int64		delay = base;

	while (--attempt > 0 && delay < cap)
	{
		if (pg_mul_s64_overflow(delay, 2, &delay))
			return cap;
	}
	return Min(delay, cap);
}

/*
 * So that a second begin in the claiming transaction is misuse, as it is
 * without a lease; the guard lets such an attempt commit.
 */
static void
list_leased(const KeyName *name, int32 number)
{
	Attempt    *attempt = attempt_list_add(name);

	attempt->number = number;
	attempt->leased = true;
}

/*
 * A large batch may have inserted the key's row after it was looked for: it
 * does not take the key's lock.  It looks for claims once more after that, and
 * we for the key, so that at least one of the two sees the other.
 */
static void
refuse_batch(const KeyName *name, TimestampTz now)
{
	Stored		again;

	store_read(name, true, &again);
	if (TransactionIdIsValid(again.inserter.xid) ||
		(again.has_key && again.key.expires_at > now))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to an idempotency key due to a concurrent batch"),
				 errhint("Retry the transaction with the same key.")));
}

void
lease_claim(const AttemptRequest *request, const Stored *stored,
			TimestampTz now, AttemptResult *result)
{
	StoredClaim claim;

	memset(&claim, 0, sizeof(claim));
	claim.fingerprint = request->fingerprint;
	claim.request = request->request;

	/*
	 * Where the key's last life is still to be seen, numbers go on from it: a
	 * worker that slept through the expiry must not hold a number that is
	 * given out again.
	 */
	claim.attempt = stored->has_key ? stored->key.attempt + 1 : 1;
	claim.retention = request->retention;
	claim.lease = request->lease;
	claim.first_seen_at = now;
	claim.claimed_at = now;
	claim.lease_until = time_after(now, request->lease, "lease");

	result->attempt = claim.attempt;
	result->first_seen_at = now;
	result->expires_at = time_after(now, request->retention, "retention");

	store_insert_claim(&request->name, &claim);
	refuse_batch(&request->name, now);
	list_leased(&request->name, claim.attempt);
}

/* The next attempt's hold on a claim that the caller has locked and read. */
static void
take_claim(const KeyName *name, StoredClaim *claim, int64 lease,
		   TimestampTz now)
{
	claim->attempt++;
	claim->lease = lease;
	claim->claimed_at = now;
	claim->lease_until = time_after(now, lease, "lease");
	store_take_claim(name, claim);
	list_leased(name, claim->attempt);
}

void
lease_take_over(const AttemptRequest *request, const StoredClaim *claim,
				TimestampTz now, AttemptResult *result)
{
	StoredClaim taken = *claim;

	/* What the first attempt left open is what this one asks for. */
	if (taken.fingerprint.len == 0)
		taken.fingerprint = request->fingerprint;
	taken.request = request->request;
	take_claim(&request->name, &taken, request->lease, now);
	result->attempt = taken.attempt;
	result->checkpoint = taken.checkpoint;
	result->state = taken.state;
	result->first_seen_at = taken.first_seen_at;
	result->expires_at = time_after(taken.first_seen_at, taken.retention,
									"retention");
}

/*
 * Lock the key and read its claim, which must be this attempt's.  A lease
 * that has ended but that nobody took over is still the attempt's own.
 */
static void
read_own_claim(const KeyName *name, int32 number, Stored *stored)
{
	const char *why = NULL;

	keylock_wait(&name->id);
	store_read(name, true, stored);
	if (!stored->has_claim)
		why = "The key has been finished or forgotten.";
	else if (stored->claim.attempt != number)
		why = "Another attempt has taken the key over.";
	else if (stored->claim.released)
		why = "The attempt has been released.";
	if (why == NULL)
		return;
	stats_count(STATS_OVERTAKEN, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_OVERTAKEN),
			 errmsg("attempt %d no longer holds the idempotency key", number),
			 errdetail_internal("%s", why),
			 errhint("Roll back what this attempt has done and begin again: begin tells where the key stands.")));
}

void
lease_finish(const KeyName *name, const Response *response, int32 number)
{
	Stored		stored;
	StoredKey	key;

	read_own_claim(name, number, &stored);
	key.fingerprint = stored.claim.fingerprint;
	key.attempt = number;
	key.first_seen_at = stored.claim.first_seen_at;
	key.finished_at = GetCurrentTimestamp();
	key.expires_at = time_after(stored.claim.first_seen_at,
								stored.claim.retention, "retention");
	key.response = *response;

	(void) store_delete_claim(name);
	store_insert_key(name, &key, stored.has_key);
}

void
lease_release_taken(const KeyName *name, int32 number, text *error,
					int64 retry_after)
{
	TimestampTz now = GetCurrentTimestamp();

	if (retry_after < 0)
		retry_after = attempt_backoff(number, BACKOFF_BASE, BACKOFF_CAP);
	store_release_claim(name, error, now,
						time_after(now, retry_after, "retry_after"));
}

void
lease_release(const KeyName *name, int32 number, text *error,
			  int64 retry_after)
{
	Stored		stored;

	read_own_claim(name, number, &stored);
	lease_release_taken(name, number, error, retry_after);
}

TimestampTz
attempt_checkpoint(const KeyName *name, int32 number, text *checkpoint,
				   Jsonb *state, int64 lease)
{
	Attempt    *attempt = attempt_list_open(&name->id);
	Stored		stored;
	StoredClaim *claim = &stored.claim;

	if (attempt != NULL && !attempt->leased)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency attempt has no lease"),
				 errhint("A checkpoint is for work that spans transactions: begin it with lease => '...'.")));

	read_own_claim(name, number, &stored);
	claim->checkpoint = checkpoint;
	claim->state = state;
	if (lease > 0)
		claim->lease = lease;
	claim->lease_until = time_after(GetCurrentTimestamp(), claim->lease,
									"lease");
	store_checkpoint_claim(name, claim);
	return claim->lease_until;
}

/* Take one candidate over, unless someone else is at it. */
static bool
resume_one(const KeyName *name, int64 lease, StoredClaim *claim)
{
	if (attempt_list_open(&name->id) != NULL || !keylock_try(&name->id))
		return false;
	if (!store_read_due(name, claim))
	{
		keylock_release(&name->id);
		return false;
	}
	take_claim(name, claim, lease, GetCurrentTimestamp());
	return true;
}

void
attempt_resume(Oid schema, text *scope, int32 max_keys, int64 lease,
			   ClaimReceiver receive, void *arg)
{
	int			resumed = 0;
	int			passed_over = 0;

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
			StoredClaim claim;

			CHECK_FOR_INTERRUPTS();
			if (resume_one(&names[i], lease, &claim))
			{
				stats_count(STATS_RECOVERED, 1);
				receive(&names[i], &claim, arg);
				resumed++;
			}
			else
				passed_over++;
		}
	}
}
