/*-------------------------------------------------------------------------
 *
 * attempt_many.c
 *	  The attempts of a batch of keys in one transaction: begin, finish.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "attempt_lease.h"
#include "attempt_list.h"
#include "attempt_many.h"
#include "errors.h"
#include "stats.h"

static int
compare_names(const void *a, const void *b)
{
	return memcmp(&((const KeyName *) a)->id, &((const KeyName *) b)->id,
				  sizeof(KeyId));
}

int
attempt_many_arrange(KeyName *names, int n)
{
	int			kept = 0;

	qsort(names, n, sizeof(KeyName), compare_names);
	for (int i = 0; i < n; i++)
	{
		if (kept == 0 || compare_names(&names[kept - 1], &names[i]) != 0)
			names[kept++] = names[i];
	}
	return kept;
}

static void
refuse_open(const KeyName *names, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (attempt_list_open(&names[i].id) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
					 errmsg("idempotency attempt was already begun in this transaction"),
					 errhint("Finish or release it before the same key is begun again.")));
	}
}

static void
wait_for_key(const KeyId *id)
{
	stats_count(STATS_WAITED, 1);
	keylock_wait(id);
}

/* Lock what must be locked, in the one order that every batch takes. */
static void
lock_many(const KeyName *names, int n)
{
	for (int i = 0; i < n; i++)
	{
		const KeyId *id = &names[i].id;

		CHECK_FOR_INTERRUPTS();
		if (n <= MANY_LOCKED ? !keylock_try(id) : keylock_held_elsewhere(id))
			wait_for_key(id);
	}
}

/* A lease cannot be waited for, and a claim is not for a batch to go on with. */
static void
refuse_claims(const KeyName *names, int n)
{
	if (store_find_claim(names, n) < 0)
		return;
	stats_count(STATS_IN_PROGRESS, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
			 errmsg("an idempotency key of the batch is under lease"),
			 errhint("Use scopes of their own for keys that are begun in batches.")));
}

/*
 * Who begins under lease holds the key's lock and may not have seen our rows,
 * nor we his claim; after this, whoever comes sees them.
 */
static void
refuse_new_claims(const KeyName *names, int n, const bool *started)
{
	if (n <= MANY_LOCKED || !store_may_have_claims(names[0].schema))
		return;
	for (int i = 0; i < n; i++)
	{
		if (started[i] && keylock_held_elsewhere(&names[i].id))
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access to an idempotency key of the batch due to a concurrent attempt"),
					 errhint("Retry the transaction with the same keys.")));
	}
	refuse_claims(names, n);
}

/* As a single begin does, with what is not stored any more and comes too late. */
static void
refuse_late(const KeyName *names, int n, const TimestampTz *sent_at,
			int64 retention, TimestampTz now, const bool *started)
{
	for (int i = 0; i < n; i++)
	{
		if (!started[i] || TIMESTAMP_NOT_FINITE(sent_at[i]) ||
			!attempt_is_too_late(sent_at[i], retention, now))
			continue;
		stats_count(STATS_EXPIRED, 1);
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_EXPIRED),
				 errmsg("an idempotency key of the batch is older than its retention"),
				 errdetail("Whether \"%s\" was processed can no longer be known.",
						   text_to_cstring(names[i].key)),
				 errhint("Find out by other means what became of it, and leave it out of the batch.")));
	}
}

void
attempt_begin_many(const KeyName *names, int n, const TimestampTz *sent_at,
				   int64 retention, bool *started)
{
	TimestampTz now;
	TimestampTz expires_at;
	int			nstarted = 0;

	refuse_open(names, n);
	lock_many(names, n);
	refuse_claims(names, n);
	now = GetCurrentTimestamp();
	expires_at = time_after(now, retention, "retention");
	store_insert_many(names, n, now, expires_at, started);
	refuse_new_claims(names, n, started);
	if (sent_at != NULL)
		refuse_late(names, n, sent_at, retention, now, started);

	for (int i = 0; i < n; i++)
	{
		Attempt    *attempt;

		if (!started[i])
		{
			/* a replay keeps no lock */
			if (n <= MANY_LOCKED)
				keylock_release(&names[i].id);
			continue;
		}
		attempt = attempt_list_add(&names[i]);
		attempt->number = 1;
		attempt->locked = n <= MANY_LOCKED;
		attempt->inserted = true;
		attempt->first_seen_at = now;
		attempt->expires_at = expires_at;
		nstarted++;
	}
	stats_count(STATS_STARTED, nstarted);
	stats_count(STATS_REPLAYED, n - nstarted);
}

int
attempt_finish_many(const KeyName *names, int n)
{
	static const Response empty = {0};
	uint64		before = attempt_list_ends();
	int			finished = 0;

	for (int i = 0; i < n; i++)
	{
		Attempt    *attempt = attempt_list_open(&names[i].id);

		if (attempt == NULL && attempt_list_ended_after(&names[i].id, before))
			continue;			/* a duplicate */
		if (attempt == NULL || !attempt->inserted)
			attempt_finish(&names[i], &empty, 0);
		else
		{
			attempt_list_end(attempt);
			stats_count(STATS_FINISHED, 1);
		}
		finished++;
	}
	return finished;
}
