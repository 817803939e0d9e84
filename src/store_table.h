/*-------------------------------------------------------------------------
 *
 * store_table.h
 *	  Our tables, opened and checked; one row found by its id, inserted or
 *	  deleted without SQL.  Only files of the store room include this.
 *
 * The promise rests on the tables' shape: each an ordinary, permanent heap
 * table without children that has our columns and a valid, immediate primary
 * key on exactly (id).  Whoever opens a table here gets one of that shape, or
 * 0A000.  Columns are found by name; what else the table has (further columns,
 * triggers, row security, constraints, indexes) does not matter to a reader.
 *
 * What was found out about a table is kept until PostgreSQL invalidates its
 * relation cache entry, or that of one of its indexes.  It may be used while
 * the table is open, whose lock keeps ALTER TABLE away.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_TABLE_H
#define IDEMPOTENCY_STORE_TABLE_H

#include "nodes/execnodes.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "store_rows.h"

/* More indexes than this, and rows are inserted through SQL. */
#define STORE_MAX_INDEXES 8

/* What is known of a table. */
typedef struct StoreFacts
{
	bool		valid;
	Oid			schema;
	Oid			relid;
	Oid			primary_key;
	NameData	primary_key_name;
	AttrNumber	attnums[STORE_MAX_COLUMNS]; /* by our column numbers */
	bool		insert_runs_no_user_code;
	bool		delete_runs_no_user_code;
	int			nindexes;
	Oid			indexes[STORE_MAX_INDEXES];
	IndexInfo  *index_infos[STORE_MAX_INDEXES];
} StoreFacts;

typedef struct StoreTable
{
	Relation	rel;
	const StoreFacts *facts;
} StoreTable;

/*
 * Lock a table of the extension, or fail; the caller closes it.  A snapshot
 * that is to show the rows must be taken after this: a rewrite by ALTER TABLE
 * hides them from older ones.
 */
extern Relation store_lock_table(Oid schema, const char *table,
								 LOCKMODE lockmode);

/* Open and lock a table of the extension in this schema, or fail. */
extern void store_table_open(StoreTable *table, Oid schema, StoreTableNo no,
							 LOCKMODE lockmode);

/* The lock stays to the end of the transaction, as a statement's would. */
extern void store_table_close(StoreTable *table);

/* Without a single page, a table has no rows. */
extern bool store_table_is_empty(const StoreTable *table);

/* How a row is looked for. */
typedef enum StoreView
{
	/*
	 * As it is now, and which transaction is writing it: for a key, or a
	 * claim whose key's lock we hold.  Takes no predicate locks, so that
	 * transactions on different keys do not fail each other under
	 * SERIALIZABLE.
	 */
	STORE_VIEW_NOW,
	/* As committed by now: for a claim whose key's lock is held elsewhere. */
	STORE_VIEW_COMMITTED
} StoreView;

/* A row that was found. */
typedef struct StoreFound
{
	TupleTableSlot *slot;		/* what row's values point into */
	StoreRow	row;
	ItemPointerData tid;
	TransactionId writer;		/* of this version; frozen ones included */
} StoreFound;

/*
 * Find the row of this id; if there is one, store_found_free() ends the use of
 * its values.  If another transaction is inserting or updating the row, it
 * counts as not found, and inserter is the one to wait for (not set for
 * STORE_VIEW_COMMITTED).
 */
extern bool store_table_find(const StoreTable *table, const KeyId *id,
							 StoreView view, StoreFound *found,
							 Inserter *inserter);
extern void store_found_free(StoreFound *found);

/*
 * Insert a row where that runs no user code; facts->insert_runs_no_user_code
 * must be true.  Fails with 40001 on a duplicate id.  The row is visible to later
 * commands after CommandCounterIncrement().
 */
extern void store_table_insert(const StoreTable *table, const StoreRow *row);

/*
 * Delete the row version at this place as it is for the active snapshot;
 * facts->delete_runs_no_user_code must be true.  With wait, waits for a
 * transaction that has locked or is changing it.  TM_Ok: deleted; TM_Deleted:
 * another transaction has deleted it; anything else: passed over.
 */
extern TM_Result store_table_delete(const StoreTable *table, ItemPointer tid,
									bool wait);

/* Called once, when the library is loaded. */
extern void store_table_init(void);

#endif							/* IDEMPOTENCY_STORE_TABLE_H */
