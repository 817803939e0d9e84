/*-------------------------------------------------------------------------
 *
 * store_rows.c
 *	  The one reader and the one writer of each row.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store_rows.h"
#include "timespan.h"

#define COLUMN_DEFINITION(number, name, type, nullable) {name, type, nullable},

static const StoreColumn key_columns[] = {KEY_COLUMN_LIST(COLUMN_DEFINITION)};
static const StoreColumn claim_columns[] = {CLAIM_COLUMN_LIST(COLUMN_DEFINITION)};

const StoreTableDef store_tables[] = {
	[STORE_KEYS] = {"idempotency_keys", KEY_COLUMNS, key_columns},
	[STORE_CLAIMS] = {"idempotency_claims", CLAIM_COLUMNS, claim_columns},
	[STORE_CORRECTIONS] = {"idempotency_corrections", 0, NULL},
};

static void *
get_varlena(const StoreRow *row, int col)
{
	return row->isnull[col] ? NULL : PG_DETOAST_DATUM_COPY(row->values[col]);
}

/*
 * A copy that is still toasted if the row's is.  Written back as it is, it
 * costs nothing; a reader that hands it out must detoast it.
 */
static void *
get_toasted(const StoreRow *row, int col)
{
	return row->isnull[col] ? NULL :
		DatumGetPointer(datumCopy(row->values[col], false, -1));
}

static TimestampTz
get_time(const StoreRow *row, int col)
{
	return row->isnull[col] ? 0 : DatumGetTimestampTz(row->values[col]);
}

static int64
get_timespan(const StoreRow *row, int col)
{
	int64		usecs;

	if (!timespan_from_interval(DatumGetIntervalP(row->values[col]), &usecs))
		elog(ERROR, "stored interval is out of range");
	return usecs;
}

static void
get_fingerprint(const StoreRow *row, int col, Fingerprint *result)
{
	bytea	   *value;

	result->len = 0;
	if (row->isnull[col])
		return;
	value = DatumGetByteaPP(row->values[col]);
	if (VARSIZE_ANY_EXHDR(value) > sizeof(result->bytes))
		elog(ERROR, "stored fingerprint is too long");
	result->len = VARSIZE_ANY_EXHDR(value);
	memcpy(result->bytes, VARDATA_ANY(value), result->len);
}

void
store_key_from_row(const StoreRow *row, StoredKey *key)
{
	Response   *response = &key->response;

	get_fingerprint(row, KEY_FINGERPRINT, &key->fingerprint);
	key->attempt_no = DatumGetInt32(row->values[KEY_ATTEMPT]);
	key->first_seen_at = get_time(row, KEY_FIRST_SEEN_AT);
	key->finished_at = get_time(row, KEY_FINISHED_AT);
	key->expires_at = get_time(row, KEY_EXPIRES_AT);
	key->shortened = !row->isnull[KEY_SHORTENED] &&
		DatumGetBool(row->values[KEY_SHORTENED]);
	response->has_status = !row->isnull[KEY_STATUS];
	response->status = response->has_status ?
		DatumGetInt32(row->values[KEY_STATUS]) : 0;
	response->headers = get_varlena(row, KEY_HEADERS);
	response->response = get_varlena(row, KEY_RESPONSE);
	response->body = get_varlena(row, KEY_BODY);
	response->failed = !row->isnull[KEY_FAILED] &&
		DatumGetBool(row->values[KEY_FAILED]);
}

void
store_claim_from_row(const StoreRow *row, StoredClaim *claim)
{
	claim->has_name = !row->isnull[CLAIM_SCOPE] && !row->isnull[CLAIM_KEY];
	get_fingerprint(row, CLAIM_FINGERPRINT, &claim->fingerprint);
	claim->request = get_toasted(row, CLAIM_REQUEST);
	claim->attempt_no = DatumGetInt32(row->values[CLAIM_ATTEMPT]);
	claim->checkpoint = get_varlena(row, CLAIM_CHECKPOINT);
	claim->state = get_toasted(row, CLAIM_STATE);
	claim->last_error = get_varlena(row, CLAIM_LAST_ERROR);
	claim->max_attempts = DatumGetInt32(row->values[CLAIM_MAX_ATTEMPTS]);
	claim->retention = get_timespan(row, CLAIM_RETENTION);
	claim->lease = get_timespan(row, CLAIM_LEASE);
	claim->first_seen_at = get_time(row, CLAIM_FIRST_SEEN_AT);
	claim->claimed_at = get_time(row, CLAIM_CLAIMED_AT);
	claim->lease_until = get_time(row, CLAIM_LEASE_UNTIL);
	claim->retry_at = get_time(row, CLAIM_RETRY_AT);
	claim->parked_at = get_time(row, CLAIM_PARKED_AT);
	claim->reset_at = get_time(row, CLAIM_RESET_AT);
}

static bool
text_equals(Datum stored, const text *given)
{
	text	   *value = DatumGetTextPP(stored);
	bool		equal = VARSIZE_ANY_EXHDR(value) == VARSIZE_ANY_EXHDR(given) &&
		memcmp(VARDATA_ANY(value), VARDATA_ANY(given),
			   VARSIZE_ANY_EXHDR(given)) == 0;

	if ((Pointer) value != DatumGetPointer(stored))
		pfree(value);
	return equal;
}

bool
store_row_has_name(const StoreRow *row, const KeyName *name)
{
	StaticAssertStmt((int) KEY_SCOPE == (int) CLAIM_SCOPE &&
					 (int) KEY_KEY == (int) CLAIM_KEY,
					 "both tables have the names in the same places");

	return (row->isnull[KEY_SCOPE] ||
			text_equals(row->values[KEY_SCOPE], name->scope)) &&
		(row->isnull[KEY_KEY] ||
		 text_equals(row->values[KEY_KEY], name->key));
}

static void
set_pointer(StoreRow *row, int col, const void *pointer)
{
	row->values[col] = PointerGetDatum(pointer);
	row->isnull[col] = pointer == NULL;
}

/* 0 stands for null. */
static void
set_time(StoreRow *row, int col, TimestampTz time)
{
	row->values[col] = TimestampTzGetDatum(time);
	row->isnull[col] = time == 0;
}

static void
set_timespan(StoreRow *row, int col, int64 usecs)
{
	set_pointer(row, col, timespan_to_interval(usecs));
}

static void
set_int(StoreRow *row, int col, int32 value)
{
	row->values[col] = Int32GetDatum(value);
	row->isnull[col] = false;
}

/* False is stored as null, which takes no room. */
static void
set_flag(StoreRow *row, int col, bool value)
{
	row->values[col] = BoolGetDatum(value);
	row->isnull[col] = !value;
}

static void
set_fingerprint(StoreRow *row, int col, const Fingerprint *fingerprint)
{
	set_pointer(row, col, fingerprint->len == 0 ? NULL :
				cstring_to_text_with_len((const char *) fingerprint->bytes,
										 fingerprint->len));
}

void
store_row_from_key(const KeyName *name, const StoredKey *key, StoreRow *row)
{
	const Response *response = &key->response;

	set_pointer(row, KEY_ID, &name->id);
	set_pointer(row, KEY_SCOPE, name->scope);
	set_pointer(row, KEY_KEY, name->key);
	set_fingerprint(row, KEY_FINGERPRINT, &key->fingerprint);
	set_int(row, KEY_ATTEMPT, key->attempt_no);
	set_int(row, KEY_STATUS, response->status);
	row->isnull[KEY_STATUS] = !response->has_status;
	set_pointer(row, KEY_HEADERS, response->headers);
	set_pointer(row, KEY_RESPONSE, response->response);
	set_pointer(row, KEY_BODY, response->body);
	set_time(row, KEY_FIRST_SEEN_AT, key->first_seen_at);
	set_time(row, KEY_FINISHED_AT, key->finished_at);
	set_time(row, KEY_EXPIRES_AT, key->expires_at);
	set_flag(row, KEY_FAILED, response->failed);
	set_flag(row, KEY_SHORTENED, key->shortened);
}

void
store_row_from_claim(const KeyName *name, const StoredClaim *claim,
					 StoreRow *row)
{
	set_pointer(row, CLAIM_ID, &name->id);
	set_pointer(row, CLAIM_SCOPE, claim->has_name ? name->scope : NULL);
	set_pointer(row, CLAIM_KEY, claim->has_name ? name->key : NULL);
	set_fingerprint(row, CLAIM_FINGERPRINT, &claim->fingerprint);
	set_pointer(row, CLAIM_REQUEST, claim->request);
	set_int(row, CLAIM_ATTEMPT, claim->attempt_no);
	set_pointer(row, CLAIM_CHECKPOINT, claim->checkpoint);
	set_pointer(row, CLAIM_STATE, claim->state);
	set_pointer(row, CLAIM_LAST_ERROR, claim->last_error);
	set_int(row, CLAIM_MAX_ATTEMPTS, claim->max_attempts);
	set_timespan(row, CLAIM_RETENTION, claim->retention);
	set_timespan(row, CLAIM_LEASE, claim->lease);
	set_time(row, CLAIM_FIRST_SEEN_AT, claim->first_seen_at);
	set_time(row, CLAIM_CLAIMED_AT, claim->claimed_at);
	set_time(row, CLAIM_LEASE_UNTIL, claim->lease_until);
	set_time(row, CLAIM_RETRY_AT, claim->retry_at);
	set_time(row, CLAIM_PARKED_AT, claim->parked_at);
	set_time(row, CLAIM_RESET_AT, claim->reset_at);
}
