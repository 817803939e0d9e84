/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between PostgreSQL versions, in one place.
 *
 * Call sites are written for the newest version; what older ones lack is
 * supplied here under the newest name.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_COMPAT_H
#define IDEMPOTENCY_COMPAT_H

#include "access/genam.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#if PG_VERSION_NUM < 150000
#error "idempotency needs PostgreSQL 15 or later"
#endif

/* 18 lets a library carry its name and version in the magic block. */
#ifdef PG_MODULE_MAGIC_EXT
#define IDEMPOTENCY_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "idempotency", .version = IDEMPOTENCY_VERSION)
#else
#define IDEMPOTENCY_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* 18 says so in front of the declaration. */
#ifndef pg_noreturn
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 17 has one function for the search_path of code that runs as an owner. */
#if PG_VERSION_NUM < 170000
static inline void
RestrictSearchPath(void)
{
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}
#endif

/* 16 gives the memory of check hooks an allocator; before, it was malloc. */
#if PG_VERSION_NUM < 160000
#define guc_malloc(elevel, size) malloc(size)
#endif

/* 17 has infinite intervals. */
#ifndef INTERVAL_NOT_FINITE
#define INTERVAL_NOT_FINITE(i) (false)
#endif

/* 18 asks whether a deferrable primary key will do, and counts scans. */
static inline Oid
compat_primary_key(Relation table)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(table, false);
#else
	return RelationGetPrimaryKeyIndex(table);
#endif
}

static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot,
					   int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * A named area of shared memory, made by init on first use.  17 has a
 * registry of segments for this; before, the main segment's slack gives a
 * small one.  NULL where none is left: that must not fail the caller, so the
 * error is caught; nothing but the one lock is held on the way.
 */
static inline void *
compat_shared_area(const char *name, Size size, void (*init) (void *))
{
#if PG_VERSION_NUM >= 170000
	bool		found;

	return GetNamedDSMSegment(name, size, init, &found);
#else
	MemoryContext context = CurrentMemoryContext;
	void	   *volatile area = NULL;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	PG_TRY();
	{
		area = ShmemInitStruct(name, size, &found);
		if (!found)
			init(area);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		HOLD_INTERRUPTS();		/* the lock's hold, which the error undid */
	}
	PG_END_TRY();
	LWLockRelease(AddinShmemInitLock);
	return area;
#endif
}

/* 16 returns a copy of the array of settings, and its length. */
static inline struct config_generic **
compat_guc_variables(int *count)
{
#if PG_VERSION_NUM >= 160000
	return get_guc_variables(count);
#else
	*count = GetNumConfigOptions();
	return get_guc_variables();
#endif
}

#endif							/* IDEMPOTENCY_COMPAT_H */
