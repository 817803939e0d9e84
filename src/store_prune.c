/*-------------------------------------------------------------------------
 *
 * store_prune.c
 *	  Expired keys: found through the BRIN index, removed in batches.
 *
 * Prune never waits, and only a begin on the very key that it is removing
 * waits for it.  It passes over rows that another transaction has locked, and
 * over expired keys on which an attempt is open, whose finish would otherwise
 * wait for this transaction.
 *
 * BRIN finds expired keys as long as its summaries are tight, so prune keeps
 * them tight: see store_summaries.h.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_frame.h"
#include "store_summaries.h"
#include "store_table.h"

#define PRUNE_BATCH 1000

static StorePlan plan_find_expired = {
	"SELECT id, ctid FROM %s.idempotency_keys"
	" WHERE expires_at OPERATOR(pg_catalog.<=) $1",
	1, {TIMESTAMPTZOID}
};

/*
 * The whole condition stands in the DELETE once more: a row may have been
 * replaced by one that has not expired since the sub-select saw it.
 */
static StorePlan plan_delete_expired = {
	"DELETE FROM %s.idempotency_keys WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s.idempotency_keys WHERE id OPERATOR(pg_catalog.=) ANY ($1)"
	" AND expires_at OPERATOR(pg_catalog.<=) $2 FOR UPDATE SKIP LOCKED))"
	" AND expires_at OPERATOR(pg_catalog.<=) $2",
	2, {UUIDARRAYOID, TIMESTAMPTZOID}
};

/*
 * A counter fences workers that were evicted.  One that sleeps for longer than
 * 30 days, and longer than the key's retention, is not fenced.
 */
#define COUNTER_IS_OLD \
	" reset_at IS NOT NULL AND" \
	" reset_at OPERATOR(pg_catalog.+) GREATEST(retention, '30 days')" \
	" OPERATOR(pg_catalog.<=) $1"

static StorePlan plan_find_old_counters = {
	"SELECT id FROM %s.idempotency_claims WHERE" COUNTER_IS_OLD,
	1, {TIMESTAMPTZOID}
};

static StorePlan plan_delete_old_counters = {
	"DELETE FROM %s.idempotency_claims WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s.idempotency_claims WHERE id OPERATOR(pg_catalog.=) ANY ($2)"
	" FOR UPDATE SKIP LOCKED)) AND" COUNTER_IS_OLD,
	2, {TIMESTAMPTZOID, UUIDARRAYOID}
};

static StorePlan plan_delete_old_corrections = {
	"DELETE FROM %s.idempotency_corrections"
	" WHERE corrected_at OPERATOR(pg_catalog.<=) $1",
	1, {TIMESTAMPTZOID}
};

/* Expired keys without an open attempt. */
typedef struct Batch
{
	int			n;
	pg_uuid_t	ids[PRUNE_BATCH];
	ItemPointerData tids[PRUNE_BATCH];
} Batch;

/* Choose from the rows just fetched, and give these back. */
static void
choose_idle_keys(Batch *batch, Summaries *s)
{
	batch->n = 0;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		bool		isnull;
		Datum		id = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);
		Datum		tid = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);

		if (keylock_held_elsewhere(DatumGetUUIDP(id)))
			continue;
		batch->ids[batch->n] = *DatumGetUUIDP(id);
		batch->tids[batch->n] = *(ItemPointer) DatumGetPointer(tid);
		summaries_note(s, ItemPointerGetBlockNumber(&batch->tids[batch->n]));
		batch->n++;
	}
	SPI_freetuptable(SPI_tuptable);
}

static int64
delete_by_sql(StoreFrame *frame, Batch *batch, TimestampTz now)
{
	Datum		ids[PRUNE_BATCH];
	Datum		values[2];

	for (int i = 0; i < batch->n; i++)
		ids[i] = UUIDPGetDatum(&batch->ids[i]);
	values[0] = PointerGetDatum(construct_array(ids, batch->n, UUIDOID,
												UUID_LEN, false,
												TYPALIGN_CHAR));
	values[1] = TimestampTzGetDatum(now);
	store_execute(frame, &plan_delete_expired, values, NULL, SPI_OK_DELETE);
	pfree(DatumGetPointer(values[0]));
	return SPI_processed;
}

/* Delete the batch's rows, without SQL where that runs no user code. */
static int64
delete_batch(StoreFrame *frame, Batch *batch, TimestampTz now)
{
	int64		deleted = 0;

	StoreTable	keys;

	store_table_open(&keys, frame->schema, STORE_KEYS, RowExclusiveLock);
	if (!keys.facts->delete_runs_no_user_code)
		deleted = delete_by_sql(frame, batch, now);
	else
	{
		for (int i = 0; i < batch->n; i++)
			deleted += store_table_delete(&keys, &batch->tids[i], false) == TM_Ok;
		CommandCounterIncrement();
	}
	store_table_close(&keys);
	return deleted;
}

int64
store_prune(Oid schema, int64 max_keys)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[1] = {TimestampTzGetDatum(now)};
	StoreFrame	frame;
	Summaries	summaries;
	Batch	   *batch = palloc(sizeof(Batch));
	Portal		expired;
	bool		reached_end = false;
	int64		removed = 0;

	store_enter(&frame, schema, STORE_KEYS, RowExclusiveLock);
	summaries_open(&summaries, frame.relid, schema);
	summaries_complete(&summaries);

	expired = SPI_cursor_open(NULL, store_plan(&frame, &plan_find_expired),
							  values, NULL, true);
	while (removed < max_keys)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(expired, true, Min(PRUNE_BATCH, max_keys - removed));
		reached_end = SPI_processed == 0;
		if (reached_end)
			break;
		choose_idle_keys(batch, &summaries);
		removed += delete_batch(&frame, batch, now);
	}
	SPI_cursor_close(expired);

	if (reached_end)
		summaries_repair(&summaries, now);
	summaries_drop_stale(&summaries);
	store_leave(&frame);
	return removed;
}

/* Of the rows just fetched, the ids of keys without an open attempt. */
static Datum
idle_ids(void)
{
	Datum	   *ids = palloc(sizeof(Datum) * (SPI_processed + 1));
	int			n = 0;

	for (int row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		Datum		id = store_fetch(row, 1, &isnull);

		if (!keylock_held_elsewhere(DatumGetUUIDP(id)))
			ids[n++] = id;
	}
	return PointerGetDatum(construct_array(ids, n, UUIDOID, UUID_LEN, false,
										   TYPALIGN_CHAR));
}

void
store_prune_counters(Oid schema)
{
	Datum		values[2] = {TimestampTzGetDatum(GetCurrentTimestamp())};
	StoreFrame	frame;

	store_enter(&frame, schema, STORE_CLAIMS, RowExclusiveLock);
	store_execute(&frame, &plan_find_old_counters, values, NULL,
				  SPI_OK_SELECT);
	values[1] = idle_ids();
	store_execute(&frame, &plan_delete_old_counters, values, NULL,
				  SPI_OK_DELETE);
	store_leave(&frame);
}

void
store_prune_corrections(Oid schema, int64 corrections_retention)
{
	Datum		values[1];
	StoreFrame	frame;

	if (corrections_retention == 0)
		return;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp() - corrections_retention);
	store_enter(&frame, schema, STORE_CORRECTIONS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_old_corrections, values, NULL,
				  SPI_OK_DELETE);
	store_leave(&frame);
}
