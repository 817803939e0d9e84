/*-------------------------------------------------------------------------
 *
 * store_many.c
 *	  The keys of a batch: inserted by one statement.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_direct.h"
#include "store_frame.h"

/* Rows come in the arrays' order, which is that of the ids. */
static StorePlan plan_insert_many = {
	"INSERT INTO %s." STORE_KEYS " (id, scope, key, attempt, first_seen_at,"
	" finished_at, expires_at)"
	" SELECT u.id, $3, u.key, 1, $4, $4, $5"
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS u (id, key)"
	" ON CONFLICT DO NOTHING RETURNING id",
	5, {UUIDARRAYOID, TEXTARRAYOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_many_expired = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY ($1)"
	" AND expires_at OPERATOR(pg_catalog.<=) $2 FOR UPDATE SKIP LOCKED))",
	2, {UUIDARRAYOID, TIMESTAMPTZOID}
};

static StorePlan plan_find_claim = {
	"SELECT id FROM %s." STORE_CLAIMS
	" WHERE id OPERATOR(pg_catalog.=) ANY ($1) LIMIT 1",
	1, {UUIDARRAYOID}
};

/* Those names whose skip is not set, as arrays; skip NULL: all. */
static int
names_as_arrays(const KeyName *names, int n, const bool *skip,
				Datum *ids, Datum *keys)
{
	Datum	   *id = palloc(sizeof(Datum) * (n + 1));
	Datum	   *key = palloc(sizeof(Datum) * (n + 1));
	int			used = 0;

	for (int i = 0; i < n; i++)
	{
		if (skip != NULL && skip[i])
			continue;
		id[used] = UUIDPGetDatum(&names[i].id);
		key[used++] = PointerGetDatum(names[i].key);
	}
	*ids = PointerGetDatum(construct_array(id, used, UUIDOID, UUID_LEN,
										   false, TYPALIGN_CHAR));
	*keys = PointerGetDatum(construct_array(key, used, TEXTOID, -1,
											false, TYPALIGN_INT));
	pfree(id);
	pfree(key);
	return used;
}

/* The statement's rows are a part of the names, in the same order. */
static int
mark_returned(const KeyName *names, int n, bool *inserted)
{
	int			i = 0;

	for (int row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(store_fetch(row, 1, &isnull));

		while (i < n && memcmp(&names[i].id, id, sizeof(*id)) != 0)
			i++;
		if (i == n)
			elog(ERROR, "inserted keys are not in the order given");
		inserted[i++] = true;
	}
	return (int) SPI_processed;
}

void
store_insert_many(const KeyName *names, int n, TimestampTz first_seen_at,
				  TimestampTz expires_at, bool *inserted)
{
	StoreFrame	frame;
	Datum		values[5];
	Datum		expired[2];

	memset(inserted, 0, sizeof(bool) * n);
	if (n == 0)
		return;
	names_as_arrays(names, n, NULL, &values[0], &values[1]);
	values[2] = PointerGetDatum(names[0].scope);
	values[3] = TimestampTzGetDatum(first_seen_at);
	values[4] = TimestampTzGetDatum(expires_at);

	store_enter(&frame, names[0].schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_insert_many, values, NULL,
				  SPI_OK_INSERT_RETURNING);
	if (mark_returned(names, n, inserted) < n)
	{
		/* What is left is a duplicate, or its row has expired. */
		names_as_arrays(names, n, inserted, &values[0], &values[1]);
		expired[0] = values[0];
		expired[1] = values[3];
		store_execute(&frame, &plan_delete_many_expired, expired, NULL,
					  SPI_OK_DELETE);
		if (SPI_processed > 0)
		{
			store_execute(&frame, &plan_insert_many, values, NULL,
						  SPI_OK_INSERT_RETURNING);
			(void) mark_returned(names, n, inserted);
		}
	}
	store_leave(&frame);
}

int
store_find_claim(const KeyName *names, int n)
{
	StoreFrame	frame;
	Datum		values[1];
	Datum		keys;
	int			found = -1;

	if (n == 0 || direct_is_empty(names[0].schema, STORE_CLAIMS))
		return -1;
	names_as_arrays(names, n, NULL, &values[0], &keys);
	store_enter(&frame, names[0].schema, STORE_CLAIMS, AccessShareLock);
	store_execute(&frame, &plan_find_claim, values, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(store_fetch(0, 1, &isnull));

		for (int i = 0; i < n && found < 0; i++)
		{
			if (memcmp(&names[i].id, id, sizeof(*id)) == 0)
				found = i;
		}
	}
	store_leave(&frame);
	return found;
}
