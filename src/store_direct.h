/*-------------------------------------------------------------------------
 *
 * store_direct.h
 *	  Rows read, inserted or deleted without SQL.  Only files of the store
 *	  room include this.
 *
 * Begin reads two tables for each key and finish inserts one row, and the
 * executor's start and end for that cost more than all the rest.  A table that
 * is what the install script made, a plain heap with its primary key, is read
 * and written here directly; any other (partitioned or itself a partition,
 * distributed, inherited from, with row security, with columns changed; for an
 * insert also with triggers, rules, check constraints, generated columns or
 * indexes on expressions, none of which may run as the caller; for a delete
 * also with triggers or rules) through SQL.  What a table is, is looked at in
 * each call, under the table's lock, so ALTER TABLE in between is no matter.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_DIRECT_H
#define IDEMPOTENCY_STORE_DIRECT_H

#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "store.h"

/* A table that is open for direct reads. */
typedef struct DirectTable
{
	Relation	table;
	Relation	index;
} DirectTable;

/*
 * Open a table whose columns must begin with those of these types, and its
 * primary key on the first of them, a uuid; false, with nothing open, if it
 * has to be read through SQL.
 */
extern bool direct_open(DirectTable *direct, Oid schema, const char *table,
						const Oid *types, int ntypes);
extern void direct_close(DirectTable *direct);

/* Is this a plain table without a single page? */
extern bool direct_is_empty(Oid schema, const char *table);

/*
 * The row of this id that the snapshot shows, all its columns fetched, or
 * NULL.  It is the table's own slot: valid until
 * ExecDropSingleTupleTableSlot().
 */
extern TupleTableSlot *direct_read(DirectTable *direct, const KeyId *id,
								   Snapshot snapshot);

/*
 * The same for the row as it is now, whatever snapshots show.  If another
 * transaction has inserted one and not ended yet: NULL, and who that is.
 * Takes no predicate locks.  An active snapshot must be there, for TOAST.
 */
extern TupleTableSlot *direct_read_now(DirectTable *direct, const KeyId *id,
									   Inserter *inserter);

/*
 * Insert a row of all the table's columns, which are of these types; false,
 * with nothing done, if it has to be inserted through SQL.
 */
extern bool direct_insert(Oid schema, const char *table, const Oid *types,
						  int ntypes, const Datum *values, const bool *nulls);

/*
 * Delete the row versions at these places and add to the count; what somebody
 * else has locked, changed or deleted meanwhile is passed over, without
 * waiting.  False, with nothing done, if they have to be deleted through SQL.
 */
extern bool direct_delete(Oid schema, const char *table,
						  ItemPointer tids, int ntids, int64 *deleted);

#endif							/* IDEMPOTENCY_STORE_DIRECT_H */
