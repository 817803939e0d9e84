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

#include "attempt_list.h"
#include "attempt_many.h"
#include "errors.h"
#include "settings.h"
#include "stats.h"

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(&(*(const KeyName *const *) a)->id,
				  &(*(const KeyName *const *) b)->id, sizeof(KeyId));
}

/*
 * Arrange pointers to the names by id, the first given of duplicates only;
 * returns how many are left.
 */
static int
arrange(const KeyName *names, int n, const KeyName **arranged)
{
	int			kept = 0;

	for (int i = 0; i < n; i++)
		arranged[i] = &names[i];
	qsort(arranged, n, sizeof(*arranged), compare_ids);
	for (int i = 0; i < n; i++)
	{
		if (kept > 0 && compare_ids(&arranged[kept - 1], &arranged[i]) == 0)
			arranged[kept - 1] = Min(arranged[kept - 1], arranged[i]);
		else
			arranged[kept++] = arranged[i];
	}
	return kept;
}

static void
check_none_open(const KeyName *names, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (attempt_list_find_open(&names[i].id) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
					 errmsg("idempotency attempt was already begun in this transaction"),
					 errdetail("The key is \"%s\".", text_to_cstring(names[i].key)),
					 errhint("Finish or release it before the same key is begun again.")));
	}
}

/* Raise what a batch cannot go on with; a lease cannot be waited for. */
static void
check_outcome_of_one(const KeyName *name, const Stored *stored, Outcome outcome)
{
	char	   *key = text_to_cstring(name->key);

	switch (outcome)
	{
		case OUTCOME_MISMATCH:
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_MISMATCH),
					 errmsg("idempotency key \"%s\" of the batch was already used with a different request", key)));
			break;
		case OUTCOME_PARKED:
			stats_count(STATS_IN_PROGRESS, 1);
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_PARKED),
					 errmsg("idempotency key \"%s\" of the batch is parked", key),
					 errhint("Use scopes of their own for keys that are begun in batches.")));
			break;
		case OUTCOME_EXPIRED:
			stats_count(STATS_EXPIRED, 1);
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_EXPIRED),
					 errmsg("an idempotency key of the batch is older than its retention"),
					 errdetail("Whether \"%s\" was processed can no longer be known.", key),
					 errhint("Find out by other means what became of it, and leave it out of the batch.")));
			break;
		default:
			break;
	}
	if (!stored->has_claim || outcome == OUTCOME_REPLAYED)
		return;
	stats_count(STATS_IN_PROGRESS, 1);
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
			 errmsg("idempotency key \"%s\" of the batch is or was under lease", key),
			 errhint("Use scopes of their own for keys that are begun in batches.")));
}

/* List an attempt whose row has just been inserted. */
static void
list_inserted(const KeyName *name, const StoredKey *key, int64 retention,
			  SentTime sent)
{
	Attempt    *attempt = attempt_list_add(name);

	attempt->attempt_no = key->attempt_no;
	attempt->row_inserted_at_begin = true;
	attempt->first_seen_at = key->first_seen_at;
	attempt->retention = retention;
	attempt->sent = sent;
	attempt->row_expires_at = key->expires_at;
}

/* Begin an attempt on a key whose lock is ours; false if it is known. */
static bool
begin_one(const KeyName *name, int64 retention)
{
	static const Fingerprint none = {0};
	RuleRequest rule = {&none, attempt_sent_by_key(name->key), retention};
	Stored		stored;
	StoredKey	key;
	Outcome		outcome;

	attempt_read_after_writers(name, BEGIN_WAIT, &stored);
	outcome = rules_outcome(&rule, &stored, true, stored.read_at);
	check_outcome_of_one(name, &stored, outcome);
	if (outcome == OUTCOME_REPLAYED)
		return false;

	Assert(outcome == OUTCOME_STARTED);
	attempt_check_key_length(name);
	memset(&key, 0, sizeof(key));
	key.attempt_no = 1;
	key.first_seen_at = stored.read_at;
	key.finished_at = stored.read_at;
	key.expires_at = rules_expires_at(stored.read_at, rule.sent, retention);
	store_insert_one_of_many(name, &key, stored.has_key);
	list_inserted(name, &key, retention, rule.sent);
	return true;
}

void
attempt_begin_many(const KeyName *names, int n, int64 retention, bool *started)
{
	const KeyName **arranged = palloc(sizeof(KeyName *) * (n + 1));
	int			distinct = arrange(names, n, arranged);
	int			nstarted = 0;

	settings_check();
	if (n <= 0)
		return;
	check_none_open(names, n);
	memset(started, 0, sizeof(bool) * n);
	store_check_tables(names[0].schema);
	for (int i = 0; i < distinct; i++)
	{
		const KeyName *name = arranged[i];
		bool		is_new;

		CHECK_FOR_INTERRUPTS();
		Assert(i == 0 || compare_ids(&arranged[i - 1], &arranged[i]) < 0);
		attempt_lock(&name->id);
		is_new = begin_one(name, retention);
		if (!is_new || distinct > MANY_LOCKED)
			keylock_release(&name->id);
		started[name - names] = is_new;
		nstarted += is_new;
	}
	store_end_many();
	stats_count(STATS_STARTED, nstarted);
	stats_count(STATS_REPLAYED, distinct - nstarted);
	pfree(arranged);
}

/* Finish the attempt of a batch's key, whose row is there already. */
static void
finish_inserted(Attempt *attempt)
{
	if (attempt->row_expires_at <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("idempotency key of a batch has expired before it was finished"),
				 errdetail("The key is \"%s\".", attempt->key),
				 errhint("The retention of a batch must be longer than its transaction.")));
	attempt_list_mark_ended(attempt);
	stats_count(STATS_FINISHED, 1);
}

int
attempt_finish_many(const KeyName *names, int n)
{
	static const Response empty = {0};
	uint64		before = attempt_list_current_end_seq();
	int			finished = 0;

	if (n > 0)
		store_check_tables(names[0].schema);
	for (int i = 0; i < n; i++)
	{
		Attempt    *attempt = attempt_list_find_open(&names[i].id);

		if (attempt == NULL && attempt_list_ended_since(&names[i].id, before))
			continue;			/* a duplicate */
		if (attempt != NULL && attempt->row_inserted_at_begin)
			finish_inserted(attempt);
		else
			attempt_finish(&names[i], &empty, 0, 0);
		finished++;
	}
	return finished;
}
