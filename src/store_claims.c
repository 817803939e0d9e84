/*-------------------------------------------------------------------------
 *
 * store_claims.c
 *	  Claims, the keys under lease: replace, delete, find.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_frame.h"

static StorePlan plan_delete_claim = {
	"DELETE FROM %s.idempotency_claims WHERE id OPERATOR(pg_catalog.=) $1"
	" AND attempt OPERATOR(pg_catalog.=) $2",
	2, {UUIDOID, INT4OID}
};

static StorePlan plan_find_due = {
	"SELECT id, scope, key FROM %s.idempotency_claims"
	" WHERE lease_until OPERATOR(pg_catalog.<=) $4"
	" AND (retry_at IS NULL OR retry_at OPERATOR(pg_catalog.<=) $4)"
	" AND parked_at IS NULL AND reset_at IS NULL"
	" AND (max_attempts OPERATOR(pg_catalog.=) 0"
	" OR attempt OPERATOR(pg_catalog.<) max_attempts)"
	" AND ($1 IS NULL OR scope OPERATOR(pg_catalog.=) $1)"
	" ORDER BY COALESCE(retry_at, lease_until) USING OPERATOR(pg_catalog.<),"
	" id USING OPERATOR(pg_catalog.<)"
	" OFFSET $2 LIMIT $3",
	4, {TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID}
};

/* In the order of the ids, in which keys are locked. */
static StorePlan plan_find_scope = {
	"SELECT id, scope, key FROM %s.idempotency_keys"
	" WHERE scope OPERATOR(pg_catalog.=) $1"
	" UNION "
	"SELECT id, scope, key FROM %s.idempotency_claims"
	" WHERE scope OPERATOR(pg_catalog.=) $1"
	" ORDER BY id USING OPERATOR(pg_catalog.<) LIMIT $2",
	2, {TEXTOID, INT8OID}
};

void
store_update_claim(const KeyName *name, const StoredClaim *claim,
				   int32 replaced_no)
{
	StoreRow	row;

	Assert(keylock_is_held(&name->id));
	Assert(claim->attempt_no >= replaced_no);
	store_row_from_claim(name, claim, &row);
	store_update_by_sql(name->schema, STORE_CLAIMS, &row, replaced_no);
}

bool
store_delete_claim(const KeyName *name, int32 attempt_no)
{
	StoreFrame	frame;
	Datum		values[2] = {UUIDPGetDatum(&name->id), Int32GetDatum(attempt_no)};
	bool		deleted;

	Assert(keylock_is_held(&name->id));
	store_enter(&frame, name->schema, STORE_CLAIMS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_claim, values, NULL, SPI_OK_DELETE);
	deleted = SPI_processed > 0;
	if (!deleted && frame.trigger_may_suppress)
		store_report_not_written(&frame);
	store_leave(&frame);
	return deleted;
}

/* The names in the rows that a statement has just returned. */
static int
fetch_names(StoreFrame *frame, KeyName *names)
{
	int			n = (int) SPI_processed;

	for (int row = 0; row < n; row++)
	{
		KeyName    *name = &names[row];
		bool		isnull;

		name->schema = frame->schema;
		name->id = *DatumGetUUIDP(store_fetch(row, 1, &isnull));
		name->scope = store_fetch_varlena(frame, row, 2);
		name->key = store_fetch_varlena(frame, row, 3);
	}
	return n;
}

int
store_find_due(Oid schema, text *scope, int skip, int max_keys,
			   KeyName **names)
{
	StoreFrame	frame;
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};
	int			found;

	*names = palloc(sizeof(KeyName) * max_keys);
	store_set_nullable(values, nulls, 0, scope);
	values[1] = Int64GetDatum(skip);
	values[2] = Int64GetDatum(max_keys);
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());

	store_enter(&frame, schema, STORE_CLAIMS, AccessShareLock);
	store_execute(&frame, &plan_find_due, values, nulls, SPI_OK_SELECT);
	found = fetch_names(&frame, *names);
	store_leave(&frame);
	return found;
}

int
store_find_scope(Oid schema, text *scope, int max_keys, KeyName **names)
{
	StoreFrame	frame;
	Datum		values[2] = {PointerGetDatum(scope), Int64GetDatum(max_keys)};
	int			found;

	store_enter(&frame, schema, STORE_KEYS, AccessShareLock);
	store_execute(&frame, &plan_find_scope, values, NULL, SPI_OK_SELECT);
	*names = MemoryContextAllocHuge(frame.caller,
									sizeof(KeyName) * (SPI_processed + 1));
	found = fetch_names(&frame, *names);
	store_leave(&frame);
	return found;
}
