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

void
attempt_begin_many(const KeyName *names, int n, int64 retention,
				   bool *started)
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
