/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Counters of what happened to keys, one set a database, in shared
 *	  memory.
 *
 * A set is a slot of a fixed array that a database takes with one
 * compare-and-exchange and keeps.  Databases beyond the array's size are not
 * counted.
 *
 * A slot has several copies of each counter, on cache lines of their own, and
 * a session adds to the copies that its number chooses.  With one copy, all
 * sessions of a database would wait for one line.  A reader adds them up.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "stats.h"

/*
 * Shared memory outlives an installation of the library.  One that lays it out
 * differently must not find the other's, which would fail every begin until
 * the server's restart: hence its size is part of its name.
 */
#define STATS_NAME "idempotency statistics, %zu bytes"

#define STATS_DATABASES 128
#define STATS_SHARDS 8

typedef union StatsShard
{
	pg_atomic_uint64 counters[STATS_COUNTERS];
	char		padding[TYPEALIGN(PG_CACHE_LINE_SIZE,
								  sizeof(pg_atomic_uint64) * STATS_COUNTERS)];
} StatsShard;

typedef struct StatsSlot
{
	StatsShard	shards[STATS_SHARDS];
	pg_atomic_uint64 reset_at;
	pg_atomic_uint32 database;	/* InvalidOid: free */
} StatsSlot;

typedef struct StatsArea
{
	StatsSlot	slots[STATS_DATABASES];
} StatsArea;

/* This database's slot.  NULL once it was looked for: there is none. */
static StatsSlot *slot = NULL;
static bool slot_lookup_done = false;

/* Only ever run by the one process that makes the area. */
static void
init_area(void *area)
{
	StatsSlot  *slots = ((StatsArea *) area)->slots;

	for (int i = 0; i < STATS_DATABASES; i++)
	{
		pg_atomic_init_u32(&slots[i].database, InvalidOid);
		pg_atomic_init_u64(&slots[i].reset_at, 0);
		for (int s = 0; s < STATS_SHARDS; s++)
			for (int c = 0; c < STATS_COUNTERS; c++)
				pg_atomic_init_u64(&slots[i].shards[s].counters[c], 0);
	}
}

#ifdef COMPAT_DSM_REGISTRY

void
stats_init(void)
{
}

static StatsArea *
get_area(void)
{
	char		name[64];

	snprintf(name, sizeof(name), STATS_NAME, sizeof(StatsArea));
	return compat_named_segment(name, sizeof(StatsArea), init_area);
}

#else							/* the memory is requested at server start */

/* NULL where the library was loaded later. */
static StatsArea *preloaded_area = NULL;
static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
request_area(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(sizeof(StatsArea));
}

static void
make_area(void)
{
	char		name[64];
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	snprintf(name, sizeof(name), STATS_NAME, sizeof(StatsArea));
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	preloaded_area = ShmemInitStruct(name, sizeof(StatsArea), &found);
	if (!found)
		init_area(preloaded_area);
	LWLockRelease(AddinShmemInitLock);
}

void
stats_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_area;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = make_area;
}

static StatsArea *
get_area(void)
{
	return preloaded_area;
}

#endif

/* The slot of this database, taken if it has none yet. */
static StatsSlot *
find_slot(StatsArea *area)
{
	uint32		start = murmurhash32(MyDatabaseId) % STATS_DATABASES;

	for (int i = 0; i < STATS_DATABASES; i++)
	{
		StatsSlot  *candidate = &area->slots[(start + i) % STATS_DATABASES];
		uint32		owner = InvalidOid;

		if (pg_atomic_compare_exchange_u32(&candidate->database, &owner,
										   MyDatabaseId))
		{
			pg_atomic_write_u64(&candidate->reset_at, GetCurrentTimestamp());
			return candidate;
		}
		if (owner == MyDatabaseId)
			return candidate;
	}
	return NULL;
}

static StatsSlot *
get_slot(void)
{
	if (!slot_lookup_done)
	{
		StatsArea  *area = get_area();

		slot_lookup_done = true;
		if (area != NULL)
			slot = find_slot(area);
	}
	return slot;
}

void
stats_count(StatsCounter counter, int64 n)
{
	StatsSlot  *mine = get_slot();

	if (mine != NULL)
	{
		StatsShard *shard = &mine->shards[(uint32) MyProcNumber % STATS_SHARDS];

		pg_atomic_fetch_add_u64(&shard->counters[counter], n);
	}
}

bool
stats_read(int64 *counters, TimestampTz *reset_at)
{
	StatsSlot  *mine = get_slot();

	if (mine == NULL)
		return false;
	for (int c = 0; c < STATS_COUNTERS; c++)
	{
		counters[c] = 0;
		for (int s = 0; s < STATS_SHARDS; s++)
			counters[c] += pg_atomic_read_u64(&mine->shards[s].counters[c]);
	}
	*reset_at = (TimestampTz) pg_atomic_read_u64(&mine->reset_at);
	return true;
}

bool
stats_reset(void)
{
	StatsSlot  *mine = get_slot();

	if (mine == NULL)
		return false;
	for (int s = 0; s < STATS_SHARDS; s++)
		for (int c = 0; c < STATS_COUNTERS; c++)
			pg_atomic_write_u64(&mine->shards[s].counters[c], 0);
	pg_atomic_write_u64(&mine->reset_at, GetCurrentTimestamp());
	return true;
}
