/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Finished keys: read, insert, delete.
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

static StorePlan plan_read_key = {
	"SELECT fingerprint, attempt, status, headers, response, body,"
	" first_seen_at, finished_at, expires_at"
	" FROM %s WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static StorePlan plan_insert_key = {
	"INSERT INTO %s (id, scope, key, fingerprint, attempt, status, headers,"
	" response, body, first_seen_at, finished_at, expires_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
	12, {UUIDOID, TEXTOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, JSONBOID,
		JSONBOID, BYTEAOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_expired_key = {
	"DELETE FROM %s WHERE id OPERATOR(pg_catalog.=) $1"
	" AND expires_at OPERATOR(pg_catalog.<=) $2",
	2, {UUIDOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_key = {
	"DELETE FROM %s WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

/* Column number col of the only row, in the caller's memory; NULL if null. */
static void *
fetch_varlena(StoreFrame *frame, int col)
{
	MemoryContext spi_context = CurrentMemoryContext;
	bool		isnull;
	Datum		value;
	void	   *copy;

	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
						  col, &isnull);
	if (isnull)
		return NULL;
	MemoryContextSwitchTo(frame->caller);
	copy = PG_DETOAST_DATUM_COPY(value);
	MemoryContextSwitchTo(spi_context);
	return copy;
}

static Datum
fetch_byval(int col, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
						 col, isnull);
}

static void
fetch_fingerprint(StoreFrame *frame, int col, Fingerprint *result)
{
	bytea	   *value = fetch_varlena(frame, col);

	result->len = 0;
	if (value == NULL)
		return;
	if (VARSIZE_ANY_EXHDR(value) > sizeof(result->bytes))
		elog(ERROR, "stored fingerprint is too long");
	result->len = VARSIZE_ANY_EXHDR(value);
	memcpy(result->bytes, VARDATA_ANY(value), result->len);
	pfree(value);
}

bool
store_read_key(Oid schema, const KeyId *id, StoredKey *stored)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(id)};
	bool		found;
	bool		isnull;

	store_enter(&frame, schema, STORE_KEYS, AccessShareLock);
	store_execute(&frame, &plan_read_key, values, NULL, SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		Response   *response = &stored->response;

		fetch_fingerprint(&frame, 1, &stored->fingerprint);
		stored->attempt = DatumGetInt32(fetch_byval(2, &isnull));
		response->status = DatumGetInt32(fetch_byval(3, &isnull));
		response->has_status = !isnull;
		response->headers = fetch_varlena(&frame, 4);
		response->response = fetch_varlena(&frame, 5);
		response->body = fetch_varlena(&frame, 6);
		stored->first_seen_at = DatumGetTimestampTz(fetch_byval(7, &isnull));
		stored->finished_at = DatumGetTimestampTz(fetch_byval(8, &isnull));
		stored->expires_at = DatumGetTimestampTz(fetch_byval(9, &isnull));
	}
	store_leave(&frame);
	return found;
}

/* A nullable argument of a plan. */
static void
set_nullable(Datum *values, char *nulls, int arg, const void *pointer)
{
	values[arg] = PointerGetDatum(pointer);
	nulls[arg] = pointer == NULL ? 'n' : ' ';
}

void
store_insert_key(Oid schema, const KeyId *id, text *scope, text *key,
				 const StoredKey *stored, bool replaces_expired)
{
	const Response *response = &stored->response;
	bytea	   *fingerprint = NULL;
	StoreFrame	frame;
	Datum		values[12];
	char		nulls[12];

	if (stored->fingerprint.len > 0)
		fingerprint = (bytea *) cstring_to_text_with_len((const char *) stored->fingerprint.bytes,
														 stored->fingerprint.len);

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(id);
	values[1] = PointerGetDatum(scope);
	values[2] = PointerGetDatum(key);
	set_nullable(values, nulls, 3, fingerprint);
	values[4] = Int32GetDatum(stored->attempt);
	values[5] = Int32GetDatum(response->status);
	nulls[5] = response->has_status ? ' ' : 'n';
	set_nullable(values, nulls, 6, response->headers);
	set_nullable(values, nulls, 7, response->response);
	set_nullable(values, nulls, 8, response->body);
	values[9] = TimestampTzGetDatum(stored->first_seen_at);
	values[10] = TimestampTzGetDatum(stored->finished_at);
	values[11] = TimestampTzGetDatum(stored->expires_at);

	store_enter(&frame, schema, STORE_KEYS, RowExclusiveLock);
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
store_delete_key(Oid schema, const KeyId *id)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(id)};
	bool		deleted;

	store_enter(&frame, schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_key, values, NULL, SPI_OK_DELETE);
	deleted = SPI_processed > 0;
	store_leave(&frame);
	return deleted;
}
