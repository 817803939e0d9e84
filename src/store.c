/*-------------------------------------------------------------------------
 *
 * store.c
 *	  What is stored of a key: read; and finished keys: insert, delete.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_frame.h"

/*
 * One statement for both tables, so that one snapshot sees a key that is just
 * being finished either as a claim or as a key, never as both or neither.
 */
static StorePlan plan_read = {
	"SELECT false, fingerprint, attempt, first_seen_at, finished_at,"
	" expires_at, status, headers, response, body,"
	" NULL::pg_catalog.text, NULL::pg_catalog.interval,"
	" NULL::pg_catalog.interval, NULL::pg_catalog.timestamptz, failed"
	" FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1"
	" UNION ALL "
	"SELECT true, fingerprint, attempt, first_seen_at, claimed_at,"
	" lease_until, NULL::pg_catalog.int4, NULL::pg_catalog.jsonb, state,"
	" NULL::pg_catalog.bytea, checkpoint, retention, lease, retry_at,"
	" NULL::pg_catalog.bool"
	" FROM %s." STORE_CLAIMS " WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static StorePlan plan_insert_key = {
	"INSERT INTO %s." STORE_KEYS " (id, scope, key, fingerprint, attempt,"
	" status, headers, response, body, first_seen_at, finished_at, expires_at,"
	" failed)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
	13, {UUIDOID, TEXTOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, JSONBOID,
		JSONBOID, BYTEAOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID}
};

/*
 * A prune may be removing the row already.  It is passed over then: the
 * insert that follows waits for the prune's end, in every isolation level,
 * where a second DELETE would fail in two of them.
 */
static StorePlan plan_delete_expired_key = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1"
	" AND expires_at OPERATOR(pg_catalog.<=) $2 FOR UPDATE SKIP LOCKED))",
	2, {UUIDOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_key = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static void
read_key_row(StoreFrame *frame, int row, StoredKey *key)
{
	Response   *response = &key->response;
	bool		isnull;

	store_fetch_fingerprint(frame, row, 2, &key->fingerprint);
	key->attempt = DatumGetInt32(store_fetch(row, 3, &isnull));
	key->first_seen_at = DatumGetTimestampTz(store_fetch(row, 4, &isnull));
	key->finished_at = DatumGetTimestampTz(store_fetch(row, 5, &isnull));
	key->expires_at = DatumGetTimestampTz(store_fetch(row, 6, &isnull));
	response->status = DatumGetInt32(store_fetch(row, 7, &isnull));
	response->has_status = !isnull;
	response->headers = store_fetch_varlena(frame, row, 8);
	response->response = store_fetch_varlena(frame, row, 9);
	response->body = store_fetch_varlena(frame, row, 10);
	response->failed = DatumGetBool(store_fetch(row, 15, &isnull));
}

static void
read_claim_row(StoreFrame *frame, int row, StoredClaim *claim)
{
	bool		isnull;

	store_fetch_fingerprint(frame, row, 2, &claim->fingerprint);
	claim->attempt = DatumGetInt32(store_fetch(row, 3, &isnull));
	claim->first_seen_at = DatumGetTimestampTz(store_fetch(row, 4, &isnull));
	claim->claimed_at = DatumGetTimestampTz(store_fetch(row, 5, &isnull));
	claim->lease_until = DatumGetTimestampTz(store_fetch(row, 6, &isnull));
	claim->state = store_fetch_varlena(frame, row, 9);
	claim->checkpoint = store_fetch_varlena(frame, row, 11);
	claim->retention = store_fetch_timespan(row, 12);
	claim->lease = store_fetch_timespan(row, 13);
	(void) store_fetch(row, 14, &isnull);
	claim->released = !isnull;
}

void
store_read(const KeyName *name, Stored *stored)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(&name->id)};

	memset(stored, 0, sizeof(*stored));
	store_enter(&frame, name->schema, STORE_KEYS, AccessShareLock);
	store_execute(&frame, &plan_read, values, NULL, SPI_OK_SELECT);
	for (int row = 0; row < SPI_processed; row++)
	{
		bool		isnull;

		if (DatumGetBool(store_fetch(row, 1, &isnull)))
		{
			stored->has_claim = true;
			read_claim_row(&frame, row, &stored->claim);
		}
		else
		{
			stored->has_key = true;
			read_key_row(&frame, row, &stored->key);
		}
	}
	store_leave(&frame);
}

void
store_insert_key(const KeyName *name, const StoredKey *key,
				 bool replaces_expired)
{
	const Response *response = &key->response;
	StoreFrame	frame;
	Datum		values[13];
	char		nulls[13];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&name->id);
	values[1] = PointerGetDatum(name->scope);
	values[2] = PointerGetDatum(name->key);
	store_set_nullable(values, nulls, 3, store_fingerprint(&key->fingerprint));
	values[4] = Int32GetDatum(key->attempt);
	values[5] = Int32GetDatum(response->status);
	nulls[5] = response->has_status ? ' ' : 'n';
	store_set_nullable(values, nulls, 6, response->headers);
	store_set_nullable(values, nulls, 7, response->response);
	store_set_nullable(values, nulls, 8, response->body);
	values[9] = TimestampTzGetDatum(key->first_seen_at);
	values[10] = TimestampTzGetDatum(key->finished_at);
	values[11] = TimestampTzGetDatum(key->expires_at);
	values[12] = BoolGetDatum(response->failed);
	nulls[12] = response->failed ? ' ' : 'n';	/* null takes no room */

	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	if (replaces_expired)
	{
		Datum		expired[2] = {values[0], values[10]};

		store_execute(&frame, &plan_delete_expired_key, expired, NULL,
					  SPI_OK_DELETE);
	}
	store_execute(&frame, &plan_insert_key, values, nulls, SPI_OK_INSERT);
	store_leave(&frame);
}

bool
store_delete_key(const KeyName *name)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(&name->id)};
	bool		deleted;

	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_key, values, NULL, SPI_OK_DELETE);
	deleted = SPI_processed > 0;
	store_leave(&frame);
	return deleted;
}
