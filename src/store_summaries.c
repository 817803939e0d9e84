/*-------------------------------------------------------------------------
 *
 * store_summaries.c
 *	  The BRIN summaries through which prune finds expired keys, kept tight.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/brin.h"
#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/tidbitmap.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "store_summaries.h"

#define EXPIRY_INDEX "idempotency_keys_expires_at_idx"

/* So many ranges are summarized anew before it is known whether that helps. */
#define REPAIR_FIRST 16

static void
append_range(RangeList *list, BlockNumber first_block)
{
	if (list->n == list->capacity)
	{
		list->capacity = Max(64, 2 * list->capacity);
		list->blocks = list->blocks == NULL ?
			palloc(list->capacity * sizeof(BlockNumber)) :
			repalloc(list->blocks, list->capacity * sizeof(BlockNumber));
	}
	list->blocks[list->n++] = first_block;
}

/* Is it BRIN on our column, of a class that knows which times are <= another? */
static bool
is_expiry_index(Relation index, Oid heap)
{
	return index->rd_rel->relkind == RELKIND_INDEX &&
		index->rd_rel->relam == BRIN_AM_OID &&
		index->rd_index->indrelid == heap &&
		index->rd_index->indkey.values[0] == get_attnum(heap, "expires_at") &&
		OidIsValid(get_opfamily_member(index->rd_opfamily[0], TIMESTAMPTZOID,
									   TIMESTAMPTZOID,
									   BTLessEqualStrategyNumber));
}

void
summaries_open(Summaries *s, Oid heap, Oid schema)
{
	Oid			indexid = get_relname_relid(EXPIRY_INDEX, schema);
	Relation	index;

	memset(s, 0, sizeof(*s));
	s->heap = heap;
	if (!OidIsValid(indexid))
		return;
	index = index_open(indexid, AccessShareLock);
	if (is_expiry_index(index, heap))
	{
		s->index = indexid;
		s->pages_per_range = BrinGetPagesPerRange(index);
	}
	index_close(index, AccessShareLock);
}

/*
 * BRIN's maintenance functions lock the table against VACUUM and each other.
 * If that lock is not free now, another session is maintaining it: leave it to
 * a later prune.
 */
static bool
lock_summaries(Summaries *s)
{
	return OidIsValid(s->index) &&
		ConditionalLockRelationOid(s->heap, ShareUpdateExclusiveLock);
}

static void
unlock_summaries(Summaries *s)
{
	UnlockRelationOid(s->heap, ShareUpdateExclusiveLock);
}

void
summaries_complete(Summaries *s)
{
	if (!lock_summaries(s))
		return;
	(void) DirectFunctionCall1(brin_summarize_new_values,
							   ObjectIdGetDatum(s->index));
	unlock_summaries(s);
}

void
summaries_note(Summaries *s, BlockNumber block)
{
	BlockNumber first;

	if (!OidIsValid(s->index))
		return;
	first = block - block % s->pages_per_range;
	if (s->stale.n == 0 || s->stale.blocks[s->stale.n - 1] != first)
		append_range(&s->stale, first);
}

static void
drop_summary(Summaries *s, BlockNumber first_block)
{
	(void) DirectFunctionCall2(brin_desummarize_range,
							   ObjectIdGetDatum(s->index),
							   Int64GetDatum((int64) first_block));
}

static void
renew_summary(Summaries *s, BlockNumber first_block)
{
	drop_summary(s, first_block);
	(void) DirectFunctionCall2(brin_summarize_range,
							   ObjectIdGetDatum(s->index),
							   Int64GetDatum((int64) first_block));
}

void
summaries_drop_stale(Summaries *s)
{
	if (s->stale.n == 0 || !lock_summaries(s))
		return;
	for (int i = 0; i < s->stale.n; i++)
		drop_summary(s, s->stale.blocks[i]);
	unlock_summaries(s);
}

/* The pages that a scan for keys that expired by now reads. */
static TIDBitmap *
pages_to_scan(Summaries *s, TimestampTz now)
{
	Relation	index = index_open(s->index, AccessShareLock);
	TIDBitmap  *pages = tbm_create(work_mem * (Size) 1024, NULL);
	IndexScanDesc scan = compat_index_beginscan_bitmap(index, GetActiveSnapshot(), 1);
	ScanKeyData key;

	ScanKeyEntryInitialize(&key, 0, 1, BTLessEqualStrategyNumber,
						   TIMESTAMPTZOID, InvalidOid, F_TIMESTAMPTZ_LE,
						   TimestampTzGetDatum(now));
	index_rescan(scan, &key, 1, NULL, 0);
	(void) index_getbitmap(scan, pages);
	index_endscan(scan);
	index_close(index, AccessShareLock);
	return pages;
}

static BlockNumber
count_pages(Summaries *s)
{
	Relation	heap = table_open(s->heap, NoLock);
	BlockNumber npages = RelationGetNumberOfBlocks(heap);

	table_close(heap, NoLock);
	return npages;
}

/*
 * List the ranges that a scan reads and that nothing was removed from.  The
 * last range is left out until it is full: as long as it has no summary, rows
 * that fill it need not update one.
 */
static void
list_vain_ranges(Summaries *s, TimestampTz now, RangeList *vain)
{
	BlockNumber npages = count_pages(s);
	TIDBitmap  *pages = pages_to_scan(s, now);
	CompatBitmapIterator *iterator = compat_bitmap_begin(pages);
	BlockNumber block;
	int			stale = 0;

	vain->n = 0;
	while (compat_bitmap_next_page(iterator, &block))
	{
		if (block % s->pages_per_range != 0 ||
			npages - block < s->pages_per_range)
			continue;
		while (stale < s->stale.n && s->stale.blocks[stale] < block)
			stale++;
		if (stale == s->stale.n || s->stale.blocks[stale] != block)
			append_range(vain, block);
	}
	compat_bitmap_end(iterator);
	tbm_free(pages);
}

/*
 * Each round summarizes twice as many ranges as the round before, as long as
 * most of these are not read any more.  So all rounds together read little more
 * than the scan has just read in vain.  Which ranges come first is left to
 * chance, lest the same few that cannot be helped hide the others from each
 * prune.
 */
void
summaries_repair(Summaries *s, TimestampTz now)
{
	RangeList	vain = {0};
	int			size = REPAIR_FIRST;

	if (!lock_summaries(s))
		return;
	list_vain_ranges(s, now, &vain);
	while (vain.n > 0)
	{
		int			n = vain.n;
		int			start = (int) pg_prng_uint64_range(&pg_global_prng_state,
													   0, n - 1);

		size = Min(size, n);
		for (int i = 0; i < size; i++)
		{
			CHECK_FOR_INTERRUPTS();
			renew_summary(s, vain.blocks[(start + i) % n]);
		}
		list_vain_ranges(s, now, &vain);
		if (vain.n > n - (size + 1) / 2)
			break;
		size *= 2;
	}
	unlock_summaries(s);
}
