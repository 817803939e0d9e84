/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  Counters of what happened to keys, one set a database, in shared
 *	  memory.
 *
 * Counted with atomics when it happens, in transactions that roll back later
 * too.  From 17 on the memory is taken on first use; a server that is out of
 * dynamic shared memory says so then (53200), as for any use of it, and the
 * next call tries again.  15 and 16 give memory only while the server starts:
 * there the library must be in shared_preload_libraries, and without that
 * nothing is counted and nothing fails.  A restart of the server, a crash
 * included, begins at zero and says when.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STATS_H
#define IDEMPOTENCY_STATS_H

#include "datatype/timestamp.h"

/* In the order of the columns of idempotency_stats. */
typedef enum StatsCounter
{
	STATS_STARTED,
	STATS_REPLAYED,
	STATS_WAITED,
	STATS_IN_PROGRESS,
	STATS_MISMATCHES,
	STATS_EXPIRED,
	STATS_FINISHED,
	STATS_RELEASED,
	STATS_EXECUTED,
	STATS_FAILED,
	STATS_RECOVERED,
	STATS_OVERTAKEN,
	STATS_PRUNED,
	STATS_GUARD_FAILURES,
	STATS_PARKED,
	STATS_RESOLVED,
	STATS_CORRECTED
} StatsCounter;

#define STATS_COUNTERS (STATS_CORRECTED + 1)

/* For _PG_init: asks for the memory where that must be done at the start. */
extern void stats_init(void);

extern void stats_count(StatsCounter counter, int64 n);

/* This database's counters since reset_at; false if there are none. */
extern bool stats_read(int64 *counters, TimestampTz *reset_at);

/* Begin at zero again; false if there is nothing to reset. */
extern bool stats_reset(void);

#endif							/* IDEMPOTENCY_STATS_H */
