/*-------------------------------------------------------------------------
 *
 * attempt_resolve.c
 *	  Settle from outside what became of a key, and find out what has to be settled.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "attempt_list.h"
#include "attempt_resolve.h"
#include "errors.h"
#include "settings.h"
#include "stats.h"

static void
check_not_own(const KeyName *name)
{
	if (attempt_list_find_open(&name->id) == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("idempotency attempt was begun in this transaction"),
			 errhint("Finish it with idempotent_finish; idempotent_resolve is for attempts of others.")));
}

/*
 * What is stored must still be what the caller saw.  A worker may have
 * finished, or taken the claim over, since then.
 */
static void
check_attempt_seen(int32 seen_no, int32 stored_no)
{
	if (seen_no != 0 && seen_no != stored_no)
		lease_report_overtaken(seen_no, stored_no == 0 ?
							   "Nothing is stored of the key." :
							   "What is stored has another attempt number.");
}

static void
insert_correction(const Resolution *resolution, Correction *correction,
				  const char *what)
{
	correction->what = what;
	correction->reason = resolution->reason;
	store_insert_correction(&resolution->name, correction);
}

static TimestampTz
expiry_of(const Resolution *resolution, TimestampTz now, int64 otherwise)
{
	int64		retention = resolution->retention > 0 ? resolution->retention :
		otherwise;

	return rules_expires_at(now, attempt_sent_by_key(resolution->name.key),
							retention);
}

/* Replace the answer of a finished key that has not expired. */
static const char *
correct_key(const Resolution *resolution, StoredKey *key, TimestampTz now)
{
	Correction	correction = {0};
	TimestampTz expires_at;

	if (!resolution->correct)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
				 errmsg("idempotency key is finished"),
				 errdetail("Attempt %d has finished it; its answer would be replaced.",
						   key->attempt_no),
				 errhint("Look at the stored answer, and pass correct => true and its attempt number if it is wrong.")));
	correction.attempt_no = key->attempt_no;
	correction.response = key->response;
	correction.finished_at = key->finished_at;
	insert_correction(resolution, &correction, "corrected");

	key->response = resolution->response;
	key->finished_at = now;
	expires_at = expiry_of(resolution, now, settings_retention());
	key->expires_at = Max(key->expires_at, expires_at);
	store_update_key(&resolution->name, key);
	stats_count(STATS_CORRECTED, 1);
	return "corrected";
}

/*
 * Finish a claim that is not live, or a key of which nothing is stored but a
 * counter or an expired row.  The answer gets the next attempt number, so that
 * a worker that is still on its way is fenced.
 */
static const char *
store_answer(const Resolution *resolution, const Stored *stored,
			 int32 stored_no, TimestampTz now)
{
	bool		is_claimed = rules_is_claimed(stored);
	Correction	correction = {0};
	StoredKey	key = {0};

	correction.attempt_no = stored_no;
	key.first_seen_at = now;
	if (is_claimed)
	{
		correction.checkpoint = stored->claim.checkpoint;
		correction.state = stored->claim.state;
		correction.error = stored->claim.last_error;
		key.fingerprint = stored->claim.fingerprint;
		key.first_seen_at = stored->claim.first_seen_at;
	}
	else
		attempt_check_key_length(&resolution->name);
	key.attempt_no = stored_no + 1;
	key.finished_at = now;
	key.expires_at = expiry_of(resolution, now, is_claimed ?
							   stored->claim.retention : settings_retention());
	key.response = resolution->response;

	insert_correction(resolution, &correction,
					  is_claimed ? "settled" : "recorded");
	if (stored->has_claim)
		lease_delete_claim(&resolution->name, stored->claim.attempt_no);
	store_insert_key(&resolution->name, &key, stored->has_key);
	stats_count(STATS_RESOLVED, 1);
	return is_claimed ? "settled" : "recorded";
}

const char *
attempt_resolve(const Resolution *resolution)
{
	Stored		stored;
	TimestampTz now;
	int32		stored_no = 0;

	check_not_own(&resolution->name);
	store_check_tables(resolution->name.schema);
	attempt_lock_and_read(&resolution->name, &stored);
	attempt_check_size(&resolution->response);
	now = stored.read_at;
	if (stored.has_key && !rules_key_is_expired(&stored.key, now))
	{
		check_attempt_seen(resolution->attempt_no, stored.key.attempt_no);
		return correct_key(resolution, &stored.key, now);
	}
	if (stored.has_key)
		stored_no = stored.key.attempt_no;
	if (stored.has_claim)
		stored_no = Max(stored_no, stored.claim.attempt_no);
	if (rules_is_claimed(&stored))
		stored_no = stored.claim.attempt_no;
	check_attempt_seen(resolution->attempt_no, stored_no);
	if (rules_is_claimed(&stored) && rules_lease_is_live(&stored.claim, now))
		lease_report_in_progress(&stored, now);
	return store_answer(resolution, &stored, stored_no, now);
}

static void
report_theirs(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
			 errmsg("theirs must be a JSON array of objects with \"key\" and \"ok\""),
			 errdetail_internal("%s", detail)));
}

/* One line of their list. */
static void
check_line(JsonbContainer *line)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(line, "key", 3, &value) == NULL ||
		value.type != jbvString)
		report_theirs("A line has no text for its key.");
	if (getKeyJsonValueFromContainer(line, "ok", 2, &value) != NULL &&
		value.type != jbvBool && value.type != jbvNull)
		report_theirs("ok must be true, false or null.");
}

/* Check the shape of reconcile's lines before SQL reads them. */
static void
check_theirs(Jsonb *theirs)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_ARRAY(theirs) || JB_ROOT_IS_SCALAR(theirs))
		report_theirs("It is not an array.");
	it = JsonbIteratorInit(&theirs->root);
	token = JsonbIteratorNext(&it, &value, true);	/* the array's begin */
	while ((token = JsonbIteratorNext(&it, &value, true)) == WJB_ELEM)
	{
		if (value.type != jbvBinary || !JsonContainerIsObject(value.val.binary.data))
			report_theirs("An element is not an object.");
		check_line(value.val.binary.data);
	}
}

void
attempt_reconcile(Oid schema, Jsonb *theirs, text *step, TimestampTz since,
				  TimestampTz until, text *scope, RowReceiver receive,
				  void *arg)
{
	check_theirs(theirs);
	store_check_tables(schema);
	store_reconcile(schema, theirs, step, since, until, scope, receive, arg);
}
