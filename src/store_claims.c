/*-------------------------------------------------------------------------
 *
 * store_claims.c
 *	  Claims, the keys under lease: insert, update, delete, find the due.
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
#include "timespan.h"

static StorePlan plan_insert_claim = {
	"INSERT INTO %s." STORE_CLAIMS " (id, scope, key, fingerprint, request,"
	" attempt, retention, lease, first_seen_at, claimed_at, lease_until)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
	11, {UUIDOID, TEXTOID, TEXTOID, BYTEAOID, JSONBOID, INT4OID, INTERVALOID,
		INTERVALOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static StorePlan plan_take_claim = {
	"UPDATE %s." STORE_CLAIMS " SET attempt = $2, lease = $3, claimed_at = $4,"
	" lease_until = $5, retry_at = NULL,"
	" fingerprint = COALESCE(fingerprint, $6), request = COALESCE(request, $7)"
	" WHERE id OPERATOR(pg_catalog.=) $1",
	7, {UUIDOID, INT4OID, INTERVALOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		BYTEAOID, JSONBOID}
};

static StorePlan plan_checkpoint_claim = {
	"UPDATE %s." STORE_CLAIMS " SET checkpoint = $2, state = $3, lease = $4,"
	" lease_until = $5"
	" WHERE id OPERATOR(pg_catalog.=) $1",
	5, {UUIDOID, TEXTOID, JSONBOID, INTERVALOID, TIMESTAMPTZOID}
};

static StorePlan plan_release_claim = {
	"UPDATE %s." STORE_CLAIMS " SET last_error = $2, lease_until = $3,"
	" retry_at = $4"
	" WHERE id OPERATOR(pg_catalog.=) $1",
	4, {UUIDOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_claim = {
	"DELETE FROM %s." STORE_CLAIMS " WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

#define CLAIM_IS_DUE \
	" lease_until OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()" \
	" AND (retry_at IS NULL OR" \
	" retry_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp())"

static StorePlan plan_find_due = {
	"SELECT id, scope, key FROM %s." STORE_CLAIMS " WHERE" CLAIM_IS_DUE
	" AND ($1 IS NULL OR scope OPERATOR(pg_catalog.=) $1)"
	" ORDER BY COALESCE(retry_at, lease_until) USING OPERATOR(pg_catalog.<),"
	" id USING OPERATOR(pg_catalog.<)"
	" OFFSET $2 LIMIT $3",
	3, {TEXTOID, INT8OID, INT8OID}
};

static StorePlan plan_read_due = {
	"SELECT fingerprint, request, attempt, checkpoint, state, retention,"
	" first_seen_at"
	" FROM %s." STORE_CLAIMS " WHERE id OPERATOR(pg_catalog.=) $1 AND"
	CLAIM_IS_DUE,
	1, {UUIDOID}
};

void
store_insert_claim(const KeyName *name, const StoredClaim *claim)
{
	StoreFrame	frame;
	Datum		values[11];
	char		nulls[11];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&name->id);
	values[1] = PointerGetDatum(name->scope);
	values[2] = PointerGetDatum(name->key);
	store_set_nullable(values, nulls, 3, store_fingerprint(&claim->fingerprint));
	store_set_nullable(values, nulls, 4, claim->request);
	values[5] = Int32GetDatum(claim->attempt);
	values[6] = IntervalPGetDatum(timespan_to_interval(claim->retention));
	values[7] = IntervalPGetDatum(timespan_to_interval(claim->lease));
	values[8] = TimestampTzGetDatum(claim->first_seen_at);
	values[9] = TimestampTzGetDatum(claim->claimed_at);
	values[10] = TimestampTzGetDatum(claim->lease_until);

	store_enter(&frame, name->schema, STORE_CLAIMS, RowExclusiveLock);
	store_execute_insert(&frame, &plan_insert_claim, values, nulls);
	store_leave(&frame);
}

/* Write to the claim of a key whose lock the caller holds; true if it is there. */
static bool
change_claim(const KeyName *name, StorePlan *plan, Datum *values,
			 const char *nulls, int expected)
{
	StoreFrame	frame;
	bool		changed;

	values[0] = UUIDPGetDatum(&name->id);
	store_enter(&frame, name->schema, STORE_CLAIMS, RowExclusiveLock);
	store_execute(&frame, plan, values, nulls, expected);
	changed = SPI_processed > 0;
	store_leave(&frame);
	return changed;
}

/* As above, where the caller has just seen the claim. */
static void
update_claim(const KeyName *name, StorePlan *plan, Datum *values,
			 const char *nulls)
{
	if (!change_claim(name, plan, values, nulls, SPI_OK_UPDATE))
		store_not_stored(name->schema, STORE_CLAIMS);
}

void
store_take_claim(const KeyName *name, const StoredClaim *claim)
{
	Datum		values[7];
	char		nulls[7];

	memset(nulls, ' ', sizeof(nulls));
	values[1] = Int32GetDatum(claim->attempt);
	values[2] = IntervalPGetDatum(timespan_to_interval(claim->lease));
	values[3] = TimestampTzGetDatum(claim->claimed_at);
	values[4] = TimestampTzGetDatum(claim->lease_until);
	store_set_nullable(values, nulls, 5, store_fingerprint(&claim->fingerprint));
	store_set_nullable(values, nulls, 6, claim->request);
	update_claim(name, &plan_take_claim, values, nulls);
}

void
store_checkpoint_claim(const KeyName *name, const StoredClaim *claim)
{
	Datum		values[5];
	char		nulls[5];

	memset(nulls, ' ', sizeof(nulls));
	store_set_nullable(values, nulls, 1, claim->checkpoint);
	store_set_nullable(values, nulls, 2, claim->state);
	values[3] = IntervalPGetDatum(timespan_to_interval(claim->lease));
	values[4] = TimestampTzGetDatum(claim->lease_until);
	update_claim(name, &plan_checkpoint_claim, values, nulls);
}

void
store_release_claim(const KeyName *name, text *error,
					TimestampTz lease_until, TimestampTz retry_at)
{
	Datum		values[4];
	char		nulls[4];

	memset(nulls, ' ', sizeof(nulls));
	store_set_nullable(values, nulls, 1, error);
	values[2] = TimestampTzGetDatum(lease_until);
	values[3] = TimestampTzGetDatum(retry_at);
	update_claim(name, &plan_release_claim, values, nulls);
}

bool
store_delete_claim(const KeyName *name)
{
	Datum		values[1];

	return change_claim(name, &plan_delete_claim, values, NULL, SPI_OK_DELETE);
}

int
store_find_due(Oid schema, text *scope, int skip, int max_keys,
			   KeyName **names)
{
	StoreFrame	frame;
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	int			found;

	*names = palloc(sizeof(KeyName) * max_keys);
	store_set_nullable(values, nulls, 0, scope);
	values[1] = Int64GetDatum(skip);
	values[2] = Int64GetDatum(max_keys);

	store_enter(&frame, schema, STORE_CLAIMS, AccessShareLock);
	store_execute(&frame, &plan_find_due, values, nulls, SPI_OK_SELECT);
	found = (int) SPI_processed;
	for (int row = 0; row < found; row++)
	{
		KeyName    *name = &(*names)[row];
		bool		isnull;

		name->schema = schema;
		name->id = *DatumGetUUIDP(store_fetch(row, 1, &isnull));
		name->scope = store_fetch_varlena(&frame, row, 2);
		name->key = store_fetch_varlena(&frame, row, 3);
	}
	store_leave(&frame);
	return found;
}

bool
store_read_due(const KeyName *name, StoredClaim *claim)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(&name->id)};
	bool		found;

	memset(claim, 0, sizeof(*claim));
	store_enter(&frame, name->schema, STORE_CLAIMS, AccessShareLock);
	store_execute(&frame, &plan_read_due, values, NULL, SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		bool		isnull;

		store_fetch_fingerprint(&frame, 0, 1, &claim->fingerprint);
		claim->request = store_fetch_varlena(&frame, 0, 2);
		claim->attempt = DatumGetInt32(store_fetch(0, 3, &isnull));
		claim->checkpoint = store_fetch_varlena(&frame, 0, 4);
		claim->state = store_fetch_varlena(&frame, 0, 5);
		claim->retention = store_fetch_timespan(0, 6);
		claim->first_seen_at = DatumGetTimestampTz(store_fetch(0, 7, &isnull));
	}
	store_leave(&frame);
	return found;
}
