/*-------------------------------------------------------------------------
 *
 * store_prune.c
 *	  Expired keys: found through the BRIN index, removed in batches.
 *
 * Prune waits for nobody and lets nobody wait who is not after the very key
 * it is removing: rows that another transaction has locked are passed over,
 * and so are expired keys on which an attempt is under way, whose finish would
 * otherwise wait for this transaction.
 *
 * BRIN answers "nothing has expired" from its summaries alone, but only where
 * it has them and they are tight: new pages have no summary until VACUUM or
 * someone else asks for one, and deleting rows never raises a summary's
 * minimum.  So prune looks after them itself: it summarizes what is new
 * before it looks, and drops the summary of each range that it removed rows
 * from, for the next prune to take anew.  If that one runs while a snapshot
 * is in use that still sees the removed rows, they count in the new summary
 * too, and the range is read in vain until rows that came into it later have
 * expired and been removed in turn.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/brin.h"
#include "access/genam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_frame.h"
#include "store_table.h"

#define EXPIRY_INDEX "idempotency_keys_expires_at_idx"
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

/* The BRIN index, and the blocks whose summaries have become too wide. */
typedef struct Summaries
{
	Oid			heap;
	Oid			index;			/* InvalidOid: there is no such index */
	BlockNumber pages_per_range;
	int			nstale;
	int			capacity;
	BlockNumber *stale;			/* one block of each range */
} Summaries;

/* Find the index; without it (a partitioned or distributed table) do without. */
static void
summaries_open(Summaries *s, StoreFrame *frame)
{
	memset(s, 0, sizeof(*s));
	s->heap = frame->relid;
	s->index = get_relname_relid(EXPIRY_INDEX, frame->schema);
	if (OidIsValid(s->index))
	{
		Relation	index = index_open(s->index, AccessShareLock);

		if (index->rd_rel->relkind == RELKIND_INDEX &&
			index->rd_rel->relam == BRIN_AM_OID &&
			index->rd_index->indrelid == s->heap)
			s->pages_per_range = BrinGetPagesPerRange(index);
		index_close(index, AccessShareLock);
	}
	if (s->pages_per_range == 0)
		s->index = InvalidOid;
}

/*
 * BRIN's maintenance functions lock the table against VACUUM and each other.
 * If that lock is not free now, someone is at it: come back another time.
 */
static bool
summaries_lock(Summaries *s)
{
	return OidIsValid(s->index) &&
		ConditionalLockRelationOid(s->heap, ShareUpdateExclusiveLock);
}

static void
summaries_unlock(Summaries *s)
{
	UnlockRelationOid(s->heap, ShareUpdateExclusiveLock);
}

/* Summarize the ranges that have no summary; reads each of them once. */
static void
summaries_complete(Summaries *s)
{
	if (!summaries_lock(s))
		return;
	(void) DirectFunctionCall1(brin_summarize_new_values,
							   ObjectIdGetDatum(s->index));
	summaries_unlock(s);
}

/* A row of this block is being removed; blocks come in ascending order. */
static void
summaries_note(Summaries *s, BlockNumber block)
{
	BlockNumber first;

	if (!OidIsValid(s->index))
		return;
	first = block - block % s->pages_per_range;
	if (s->nstale > 0 && s->stale[s->nstale - 1] == first)
		return;
	if (s->nstale == s->capacity)
	{
		s->capacity = Max(64, 2 * s->capacity);
		s->stale = s->stale == NULL ?
			palloc(s->capacity * sizeof(BlockNumber)) :
			repalloc(s->stale, s->capacity * sizeof(BlockNumber));
	}
	s->stale[s->nstale++] = first;
}

static void
summaries_drop_stale(Summaries *s)
{
	if (s->nstale == 0 || !summaries_lock(s))
		return;
	for (int i = 0; i < s->nstale; i++)
		(void) DirectFunctionCall2(brin_desummarize_range,
								   ObjectIdGetDatum(s->index),
								   Int64GetDatum((int64) s->stale[i]));
	summaries_unlock(s);
}

/* Expired keys that no attempt is at work on. */
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
	int64		removed = 0;

	store_enter(&frame, schema, STORE_KEYS, RowExclusiveLock);
	summaries_open(&summaries, &frame);
	summaries_complete(&summaries);

	expired = SPI_cursor_open(NULL, store_plan(&frame, &plan_find_expired),
							  values, NULL, true);
	while (removed < max_keys)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(expired, true, Min(PRUNE_BATCH, max_keys - removed));
		if (SPI_processed == 0)
			break;
		choose_idle_keys(batch, &summaries);
		removed += delete_batch(&frame, batch, now);
	}
	SPI_cursor_close(expired);

	summaries_drop_stale(&summaries);
	store_leave(&frame);
	return removed;
}

/* The ids of the rows just fetched on whose keys nobody is at work. */
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
