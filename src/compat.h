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
#include "nodes/tidbitmap.h"
#include "storage/lock.h"
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#include "storage/proc.h"
#else
#include "storage/backendid.h"
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
 * 16 marks as visible what the server looks up in a library, whose symbols are
 * hidden otherwise, functions for SQL included.  These macros are expanded
 * where functions are declared, so this header must come first there.
 */
#if PG_VERSION_NUM < 160000 && defined(__GNUC__)
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(funcname) \
extern PGDLLEXPORT Datum funcname(PG_FUNCTION_ARGS); \
extern PGDLLEXPORT const Pg_finfo_record * CppConcat(pg_finfo_,funcname)(void); \
const Pg_finfo_record * \
CppConcat(pg_finfo_,funcname) (void) \
{ \
	static const Pg_finfo_record my_finfo = { 1 }; \
	return &my_finfo; \
} \
extern int	no_such_variable
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

static inline IndexScanDesc
compat_index_beginscan_bitmap(Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan_bitmap(index, snapshot, NULL, nkeys);
#else
	return index_beginscan_bitmap(index, snapshot, nkeys);
#endif
}

/* 18 has other names for walking through a bitmap of pages. */
#if PG_VERSION_NUM >= 180000
typedef TBMPrivateIterator CompatBitmapIterator;
#define compat_bitmap_begin(bitmap) tbm_begin_private_iterate(bitmap)
#define compat_bitmap_end(iterator) tbm_end_private_iterate(iterator)
#else
typedef TBMIterator CompatBitmapIterator;
#define compat_bitmap_begin(bitmap) tbm_begin_iterate(bitmap)
#define compat_bitmap_end(iterator) tbm_end_iterate(iterator)
#endif

/* The next page of the bitmap, in ascending order; false after the last. */
static inline bool
compat_bitmap_next_page(CompatBitmapIterator *iterator, BlockNumber *block)
{
#if PG_VERSION_NUM >= 180000
	TBMIterateResult page;

	if (!tbm_private_iterate(iterator, &page))
		return false;
	*block = page.blockno;
#else
	TBMIterateResult *page = tbm_iterate(iterator);

	if (page == NULL)
		return false;
	*block = page->blockno;
#endif
	return true;
}

/*
 * Delete a row.  Without wait, a row that another transaction is changing is
 * left alone, and the result is TM_BeingModified.
 *
 * 19 has as many arguments as the versions before, in another order and of
 * types that convert into each other.  A call in the wrong order compiles with
 * a warning and crashes, so only this function calls it.
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
 * 17 numbers processes by their place in the array of all of them.  Before,
 * backends have a number of their own, which distinguishes them as well.
 */
#if PG_VERSION_NUM < 170000
#define MyProcNumber MyBackendId
#endif

/*
 * 17 has a registry of named segments of shared memory, made by init on first
 * use.  Before, a library must ask for memory while the server starts.
 */
#if PG_VERSION_NUM >= 170000
#define COMPAT_DSM_REGISTRY
#endif

#if PG_VERSION_NUM >= 190000
/* 19 hands an argument through to init: here the init without one. */
static inline void
compat_init_segment(void *segment, void *init)
{
	(*(void (**) (void *)) init) (segment);
}
#endif

#ifdef COMPAT_DSM_REGISTRY
static inline void *
compat_named_segment(const char *name, Size size, void (*init) (void *))
{
	bool		found;

#if PG_VERSION_NUM >= 190000
	return GetNamedDSMSegment(name, size, compat_init_segment, &found, &init);
#else
	return GetNamedDSMSegment(name, size, init, &found);
#endif
}
#endif

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
