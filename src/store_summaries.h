/*-------------------------------------------------------------------------
 *
 * store_summaries.h
 *	  The BRIN summaries through which prune finds expired keys, kept tight.
 *	  Only files of the store room include this.
 *
 * BRIN answers "nothing has expired" from its summaries alone, but only where
 * it has them and they are tight: new pages have no summary until VACUUM or
 * someone else asks for one, and deleting rows never raises a summary's
 * minimum.  So prune looks after them itself.  It summarizes new ranges before
 * it scans, and drops the summary of each range that it removed rows from, for
 * the next prune to take anew.
 *
 * If that next prune runs while a snapshot still sees the removed rows, they
 * count in the new summary too.  From then on every prune would read the range
 * in vain, until the rows that come into it later have expired in turn.  So a
 * prune that reads ranges without finding an expired key in them summarizes
 * these once more.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_SUMMARIES_H
#define IDEMPOTENCY_STORE_SUMMARIES_H

#include "datatype/timestamp.h"
#include "storage/block.h"

/* A list of ranges, ascending, each by its first block. */
typedef struct RangeList
{
	int			n;
	int			capacity;
	BlockNumber *blocks;
} RangeList;

typedef struct Summaries
{
	Oid			heap;
	Oid			index;			/* InvalidOid: there is no such index */
	BlockNumber pages_per_range;
	RangeList	stale;			/* rows were removed from these */
} Summaries;

/* Find the index of this table; all else does nothing if there is none. */
extern void summaries_open(Summaries *s, Oid heap, Oid schema);

/* Summarize the ranges that have no summary; reads each of them once. */
extern void summaries_complete(Summaries *s);

/* A row of this block is being removed; blocks come in ascending order. */
extern void summaries_note(Summaries *s, BlockNumber block);

/*
 * The scan for keys that expired by now has reached the end of the table.
 * Summarize anew the ranges that it read although nothing was removed from
 * them.  If that does not help, because a snapshot still sees what was removed,
 * a few of them are all that is read for it.
 */
extern void summaries_repair(Summaries *s, TimestampTz now);

/* Drop the summaries of the ranges that rows were removed from. */
extern void summaries_drop_stale(Summaries *s);

#endif							/* IDEMPOTENCY_STORE_SUMMARIES_H */
