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
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "stats.h"

/*
 * Shared memory outlives an installation of the library.  One that lays it out
 * differently must not find the other's, which would fail every begin until
 * the server's restart: hence its size is part of its name.
 */
#define STATS_NAME "idempotency statistics, %zu bytes"

/* With 128 bytes a slot this fits the slack of the main segment (15, 16). */
#define STATS_DATABASES 128

typedef struct StatsSlot
{
	pg_atomic_uint32 database;	/* InvalidOid: free */
	pg_atomic_uint64 reset_at;
	pg_atomic_uint64 counters[STATS_COUNTERS];
} StatsSlot;

typedef struct StatsArea
{
	StatsSlot	slots[STATS_DATABASES];
} StatsArea;

/* This database's slot; NULL and asked: there is none to be had. */
static StatsSlot *slot = NULL;
static bool asked = false;

/* Only ever run by the one backend that makes the area. */
static void
stats_area_init(void *area)
{
	StatsSlot  *slots = ((StatsArea *) area)->slots;

	for (int i = 0; i < STATS_DATABASES; i++)
	{
		pg_atomic_init_u32(&slots[i].database, InvalidOid);
		pg_atomic_init_u64(&slots[i].reset_at, 0);
		for (int c = 0; c < STATS_COUNTERS; c++)
			pg_atomic_init_u64(&slots[i].counters[c], 0);
	}
}

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
stats_slot(void)
{
	if (!asked)
	{
		char		name[64];
		StatsArea  *area;

		snprintf(name, sizeof(name), STATS_NAME, sizeof(StatsArea));
		area = compat_shared_area(name, sizeof(StatsArea), stats_area_init);
		asked = true;
		if (area != NULL)
			slot = find_slot(area);
	}
	return slot;
}

void
stats_count(StatsCounter counter, int64 n)
{
	StatsSlot  *mine = stats_slot();

	if (mine != NULL)
		pg_atomic_fetch_add_u64(&mine->counters[counter], n);
}

bool
stats_read(int64 *counters, TimestampTz *reset_at)
{
	StatsSlot  *mine = stats_slot();

	if (mine == NULL)
		return false;
	for (int c = 0; c < STATS_COUNTERS; c++)
		counters[c] = (int64) pg_atomic_read_u64(&mine->counters[c]);
	*reset_at = (TimestampTz) pg_atomic_read_u64(&mine->reset_at);
	return true;
}

bool
stats_reset(void)
{
	StatsSlot  *mine = stats_slot();

	if (mine == NULL)
		return false;
	for (int c = 0; c < STATS_COUNTERS; c++)
		pg_atomic_write_u64(&mine->counters[c], 0);
	pg_atomic_write_u64(&mine->reset_at, GetCurrentTimestamp());
	return true;
}
