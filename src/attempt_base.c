/*-------------------------------------------------------------------------
 *
 * attempt_base.c
 *	  What the files of the attempt room share.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "attempt_base.h"
#include "errors.h"
#include "keytime.h"
#include "settings.h"
#include "stats.h"

SentTime
attempt_sent_by_key(const text *key)
{
	SentTime	sent = {SENT_UNKNOWN, 0};

	if (settings_key_time &&
		keytime_known(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key), &sent.at))
		sent.by = SENT_BY_KEY;
	return sent;
}

void
attempt_lock(const KeyId *id)
{
	if (keylock_try(id))
		return;
	stats_count(STATS_WAITED, 1);
	keylock_wait(id);
}

void
attempt_read_after_writers(const KeyName *name, BeginMode mode, Stored *stored)
{
	Assert(keylock_is_held(&name->id));
	store_read(name, true, stored);
	while (mode == BEGIN_WAIT && TransactionIdIsValid(stored->inserter.xid))
	{
		stats_count(STATS_WAITED, 1);
		store_wait_for(&stored->inserter);
		store_read(name, true, stored);
	}
}

void
attempt_report_mismatch(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISMATCH),
			 errmsg("idempotency key was already used with a different request"),
			 errhint("Send a new key with a new request, and a retry with the same content as the first.")));
}

void
attempt_lock_and_read(const KeyName *name, Stored *stored)
{
	attempt_lock(&name->id);
	attempt_read_after_writers(name, BEGIN_WAIT, stored);
	if (stored->other_name)
		attempt_report_mismatch();
}

bool
attempt_sees_work_of(const Stored *stored)
{
	return !IsolationUsesXactSnapshot() ||
		store_is_visible(stored->claim_writer);
}

void
attempt_check_sees_work_of(const Stored *stored)
{
	if (attempt_sees_work_of(stored))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to an idempotency key due to a concurrent attempt"),
			 errdetail("This transaction's snapshot is older than the checkpoint at which the attempt would go on, and does not show its work."),
			 errhint("Retry the transaction with the same key.")));
}

Jsonb *
attempt_detoast(Jsonb *value)
{
	return value == NULL ? NULL :
		(Jsonb *) PG_DETOAST_DATUM(PointerGetDatum(value));
}

void
attempt_claim_to_result(const StoredClaim *claim, AttemptResult *result)
{
	result->checkpoint = claim->checkpoint;
	result->state = attempt_detoast(claim->state);
	result->first_seen_at = claim->first_seen_at;
	result->error = claim->last_error;
}

void
attempt_check_key_length(const KeyName *name)
{
	int			len = VARSIZE_ANY_EXHDR(name->key);

	if (len <= settings_max_key_length ||
		pg_mbstrlen_with_len(VARDATA_ANY(name->key), len) <= settings_max_key_length)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
			 errmsg("idempotency key is too long"),
			 errdetail("It must have at most %d characters, see \"%s\".",
					   settings_max_key_length, "idempotency.max_key_length")));
}

static int64
size_of(const void *value)
{
	return value == NULL ? 0 : VARSIZE_ANY_EXHDR(value);
}

void
attempt_check_size(const Response *response)
{
	int64		size = size_of(response->response) +
		size_of(response->headers) + size_of(response->body);

	if (settings_max_response_size > 0 && size > settings_max_response_size)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_TOO_LARGE),
				 errmsg("response is too large to be stored"),
				 errdetail("It has %lld bytes, and %s is %d bytes.",
						   (long long) size, "idempotency.max_response_size",
						   settings_max_response_size),
				 errhint("Store the response elsewhere and keep a reference to it with the key.")));
}
