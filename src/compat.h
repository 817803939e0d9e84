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
#include "access/tableam.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/tuplestore.h"	/* 19's funcapi.h has it no longer */

#if PG_VERSION_NUM < 150000
#error "idempotency needs PostgreSQL 15 or later"
#endif

/*
 * 16 gives what it marks so its visibility in a library whose symbols are
 * hidden otherwise.  The macro is expanded where a function is declared, that
 * is, after this.
 */
#if PG_VERSION_NUM < 160000 && defined(__GNUC__)
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
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

/* 18 asks whether a deferrable primary key will do. */
static inline Oid
compat_primary_key(Relation table)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(table, false);
#else
	return RelationGetPrimaryKeyIndex(table);
#endif
}

/* 18 counts scans, 19 has flags for them. */
static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot,
					   int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0, SO_NONE);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * Delete a row.  Without wait, a row that somebody else is changing is left
 * alone, and the result says so.
 *
 * 19 has as many arguments as the versions before, in another order and of
 * types that convert into each other.  A call in the wrong order compiles with
 * a warning and crashes, so nobody but this function calls it.
 */
static inline TM_Result
compat_tuple_delete(Relation table, ItemPointer tid, CommandId cid,
					Snapshot snapshot, bool wait, TM_FailureData *failure)
{
#if PG_VERSION_NUM >= 190000
	return table_tuple_delete(table, tid, cid, 0, snapshot, InvalidSnapshot,
							  wait, failure);
#else
	return table_tuple_delete(table, tid, cid, snapshot, InvalidSnapshot,
							  wait, failure, false);
#endif
}

/* Before 17 an index keeps nothing between inserts that must be given back. */
static inline void
compat_index_insert_cleanup(Relation index, struct IndexInfo *info)
{
#if PG_VERSION_NUM >= 170000
	index_insert_cleanup(index, info);
#endif
}

/*
 * Building JSON: push the tokens one by one, the last END by compat_json_done,
 * which returns the whole.  Begin with a state that is all zeros.  19 keeps
 * the value in the state, where older versions return it.
 */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState CompatJsonState;
#else
typedef struct CompatJsonState
{
	JsonbParseState *parse_state;
} CompatJsonState;
#endif

static inline void
compat_json_push(CompatJsonState *state, JsonbIteratorToken token,
				 JsonbValue *value)
{
#if PG_VERSION_NUM >= 190000
	pushJsonbValue(state, token, value);
#else
	(void) pushJsonbValue(&state->parse_state, token, value);
#endif
}

static inline Jsonb *
compat_json_done(CompatJsonState *state, JsonbIteratorToken end)
{
#if PG_VERSION_NUM >= 190000
	pushJsonbValue(state, end, NULL);
	return JsonbValueToJsonb(state->result);
#else
	return JsonbValueToJsonb(pushJsonbValue(&state->parse_state, end, NULL));
#endif
}

/*
 * A named area of shared memory, made by init on first use.  17 has a
 * registry of segments for this; before, the main segment's slack gives a
 * small one.  NULL where none is left: that must not fail the caller, so the
 * error is caught; nothing but the one lock is held on the way.
 */
#if PG_VERSION_NUM >= 190000
/* 19 hands an argument through to init: here the init without one. */
static inline void
compat_shared_init(void *area, void *init)
{
	(*(void (**) (void *)) init) (area);
}
#endif

static inline void *
compat_shared_area(const char *name, Size size, void (*init) (void *))
{
#if PG_VERSION_NUM >= 190000
	bool		found;

	return GetNamedDSMSegment(name, size, compat_shared_init, &found, &init);
#elif PG_VERSION_NUM >= 170000
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

/* 17 can ask for stronger locks too. */
static inline bool
compat_lock_held_by_me(const LOCKTAG *tag, LOCKMODE lockmode)
{
#if PG_VERSION_NUM >= 170000
	return LockHeldByMe(tag, lockmode, false);
#else
	return LockHeldByMe(tag, lockmode);
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
