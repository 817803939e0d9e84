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

static StorePlan plan_find_honoured = {
	"SELECT id FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY ($1)"
	" AND expires_at OPERATOR(pg_catalog.>) $2"
	" ORDER BY id USING OPERATOR(pg_catalog.<)",
	2, {UUIDARRAYOID, TIMESTAMPTZOID}
};

/*
 * In the order of the ids too, and waiting: two batches would otherwise each
 * delete some of the same rows and then wait for the other's.
 */
static StorePlan plan_delete_many_expired = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY ($1)"
	" AND expires_at OPERATOR(pg_catalog.<=) $2"
	" ORDER BY id USING OPERATOR(pg_catalog.<) FOR UPDATE))",
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

/*
 * The statement's rows are a part of the names, in the same order.  Mark
 * them, and tell how many they are.
 */
static int
mark_returned(const KeyName *names, int n, bool *marks)
{
	int			i = 0;

	for (int row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(store_fetch(row, 1, &isnull));

		while (i < n && memcmp(&names[i].id, id, sizeof(*id)) != 0)
			i++;
		if (i == n)
			elog(ERROR, "keys are not in the order given");
		marks[i++] = true;
	}
	return (int) SPI_processed;
}

/* What a call of store_insert_many is about. */
typedef struct BatchInsert
{
	const KeyName *names;
	int			n;
	TimestampTz first_seen_at;
	TimestampTz expires_at;
	bool	   *inserted;
	bool	   *settled;		/* inserted, or seen to be honoured already */
} BatchInsert;

/* Insert those that are not settled, after the expired rows if these go first. */
static int
insert_unsettled(const BatchInsert *batch, bool delete_expired)
{
	StoreFrame	frame;
	Datum		values[5];
	int			inserted;

	names_as_arrays(batch->names, batch->n, batch->settled, &values[0],
					&values[1]);
	values[2] = PointerGetDatum(batch->names[0].scope);
	values[3] = TimestampTzGetDatum(batch->first_seen_at);
	values[4] = TimestampTzGetDatum(batch->expires_at);

	store_enter(&frame, batch->names[0].schema, STORE_KEYS, RowExclusiveLock);
	if (delete_expired)
	{
		Datum		expired[2] = {values[0], values[3]};

		store_execute(&frame, &plan_delete_many_expired, expired, NULL,
					  SPI_OK_DELETE);
	}
	store_execute(&frame, &plan_insert_many, values, NULL,
				  SPI_OK_INSERT_RETURNING);
	inserted = mark_returned(batch->names, batch->n, batch->inserted);
	store_leave(&frame);
	return inserted;
}

/* Settle what is stored already, by a new snapshot; how many are left? */
static int
settle(const BatchInsert *batch)
{
	StoreFrame	frame;
	Datum		values[2];
	Datum		keys;
	int			left;

	memcpy(batch->settled, batch->inserted, sizeof(bool) * batch->n);
	left = names_as_arrays(batch->names, batch->n, batch->settled, &values[0],
						   &keys);
	values[1] = TimestampTzGetDatum(batch->first_seen_at);
	store_enter(&frame, batch->names[0].schema, STORE_KEYS, AccessShareLock);
	store_execute(&frame, &plan_find_honoured, values, NULL, SPI_OK_SELECT);
	left -= mark_returned(batch->names, batch->n, batch->settled);
	store_leave(&frame);
	return left;
}

/*
 * What conflicts with the insert is a duplicate only if it is honoured.  An
 * expired row goes first, and where somebody else is at it, a prune or a batch,
 * his end is waited for: a message must not pass for a duplicate because of
 * a row that is about to go.
 */
void
store_insert_many(const KeyName *names, int n, TimestampTz first_seen_at,
				  TimestampTz expires_at, bool *inserted)
{
	BatchInsert batch = {names, n, first_seen_at, expires_at, inserted};

	memset(inserted, 0, sizeof(bool) * n);
	if (n == 0)
		return;
	batch.settled = palloc0(sizeof(bool) * n);
	if (insert_unsettled(&batch, false) < n && settle(&batch) > 0)
	{
		(void) insert_unsettled(&batch, true);
		if (settle(&batch) > 0)
			store_not_stored(names[0].schema, STORE_KEYS);
	}
	pfree(batch.settled);
}

bool
store_may_have_claims(Oid schema)
{
	return !direct_is_empty(schema, STORE_CLAIMS);
}

int
store_find_claim(const KeyName *names, int n)
{
	StoreFrame	frame;
	Datum		values[1];
	Datum		keys;
	int			found = -1;

	if (n == 0 || !store_may_have_claims(names[0].schema))
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
