/*-------------------------------------------------------------------------
 *
 * store_table.c
 *	  Our tables, opened and checked; one row found by its id, inserted or
 *	  deleted without SQL.
 *
 * Begin reads two tables for each key and finish inserts one row.  The start
 * and the end of the executor for that would cost more than all the rest.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "citus.h"
#include "compat.h"
#include "store_conflict.h"
#include "store_table.h"

/* Of each table whose shape matters, what is known, and the memory for it. */
static StoreFacts known[STORE_CHECKED_TABLES];
static MemoryContext known_contexts[STORE_CHECKED_TABLES];

/* Raised by each invalidation: what was being found out meanwhile is not kept. */
static uint64 invalidations = 0;

/* Shape -------------------------------------------------------------------- */

static bool
concerns(const StoreFacts *facts, Oid relid)
{
	if (!OidIsValid(relid) || relid == facts->relid)
		return true;
	for (int i = 0; i < facts->nindexes; i++)
	{
		if (facts->indexes[i] == relid)
			return true;
	}
	return relid == facts->primary_key;
}

/* Relation cache callback: the entry of relid, or of all if that is 0. */
static void
invalidate_facts(Datum arg, Oid relid)
{
	invalidations++;
	for (int i = 0; i < STORE_CHECKED_TABLES; i++)
	{
		if (known[i].valid && concerns(&known[i], relid))
			known[i].valid = false;
	}
}

pg_noreturn static void
report_shape(const char *table, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("table \"%s\" is not of a shape that keeps the promise of extension \"idempotency\"", table),
			 errdetail_internal("%s", detail),
			 errhint("It must be an ordinary permanent table without children, with the columns and the primary key (id) that the extension gave it. For distributed tables install the SQL edition instead.")));
}

/* Check that the table is one on which the key's lock and row can be relied. */
static void
check_kind(Relation rel, const char *name)
{
	Form_pg_class form = rel->rd_rel;

	if (form->relkind == RELKIND_PARTITIONED_TABLE)
		report_shape(name, "It is partitioned.");
	if (form->relkind != RELKIND_RELATION || form->relam != HEAP_TABLE_AM_OID)
		report_shape(name, "It is not an ordinary heap table.");
	if (form->relpersistence != RELPERSISTENCE_PERMANENT)
		report_shape(name, "It is unlogged or temporary: a crash would lose it.");
	if (form->relispartition)
		report_shape(name, "It is a partition.");
	if (form->relhassubclass &&
		find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL)
		report_shape(name, "Other tables inherit from it.");
	if (citus_is_loaded() && citus_has_distributed(RelationGetRelid(rel)))
		report_shape(name, "It is distributed.");
	if (citus_is_loaded() && citus_is_worker_node())
		report_shape(name, "It is local to a worker node, and each node has its own.");
}

/* Where is our column? */
static AttrNumber
find_column(Relation rel, const char *table, const StoreColumn *column)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (attribute->attisdropped ||
			strcmp(NameStr(attribute->attname), column->name) != 0)
			continue;
		if (attribute->atttypid == column->type &&
			attribute->attgenerated == '\0')
			return attribute->attnum;
		break;
	}
	report_shape(table, psprintf("Column \"%s\" is missing, or of another type.",
								 column->name));
}

/*
 * Open the primary key.  REINDEX CONCURRENTLY may put another index into its
 * place while we wait for the index's lock; the one that was there is then
 * marked as invalid, although the table has a valid primary key all the time.
 */
static Relation
open_primary_key(Relation rel, const char *name)
{
	for (;;)
	{
		Oid			indexid = compat_primary_key(rel);
		Relation	index;

		if (!OidIsValid(indexid))
			report_shape(name, "It has no valid immediate primary key.");
		index = index_open(indexid, AccessShareLock);
		/* Taking the lock has read the invalidations. */
		if (compat_primary_key(rel) == indexid)
			return index;
		index_close(index, AccessShareLock);
	}
}

/*
 * Check the primary key, on which I1 rests when rows come from elsewhere, and
 * keep it as a fact.  A deferrable one would report a duplicate too late.
 */
static void
check_primary_key(Relation rel, const char *name, StoreFacts *facts)
{
	Relation	index = open_primary_key(rel, name);
	bool		fits;

	fits = index->rd_rel->relam == BTREE_AM_OID &&
		index->rd_index->indisvalid &&
		index->rd_index->indimmediate &&
		index->rd_index->indnkeyatts == 1 &&
		index->rd_index->indkey.values[0] == facts->attnums[0];
	facts->primary_key = RelationGetRelid(index);
	namestrcpy(&facts->primary_key_name, RelationGetRelationName(index));
	index_close(index, AccessShareLock);
	if (!fits)
		report_shape(name, "It has no valid immediate primary key on exactly (id).");
}

/*
 * Would an insert run anybody's own code, or anything else that the executor
 * is needed for?  None of that may run here, and none of it may be left out.
 */
static bool
insert_runs_no_user_code(Relation rel, const StoreTableDef *def,
						 const StoreFacts *facts)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (desc->natts != def->ncolumns || rel->trigdesc != NULL ||
		rel->rd_rules != NULL)
		return false;
	if (desc->constr != NULL &&
		(desc->constr->num_check > 0 || desc->constr->has_generated_stored))
		return false;
	for (int i = 0; i < def->ncolumns; i++)
	{
		if (def->columns[i].nullable &&
			TupleDescAttr(desc, facts->attnums[i] - 1)->attnotnull)
			return false;
	}
	return true;
}

/* Can we make an entry of this index without the executor? */
static bool
is_simple_index(Relation index, const IndexInfo *info)
{
	return (index->rd_rel->relam == BTREE_AM_OID ||
			index->rd_rel->relam == BRIN_AM_OID) &&
		info->ii_Expressions == NIL && info->ii_Predicate == NIL &&
		info->ii_ExclusionOps == NULL &&
		index->rd_index->indimmediate;
}

/* Learn the table's indexes; false if there are some that need the executor. */
static bool
learn_indexes(Relation rel, StoreFacts *facts, MemoryContext context)
{
	bool		all_simple = true;
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		MemoryContext caller = MemoryContextSwitchTo(context);
		IndexInfo  *info = BuildIndexInfo(index);

		MemoryContextSwitchTo(caller);
		if (facts->nindexes == STORE_MAX_INDEXES || !is_simple_index(index, info))
			all_simple = false;
		else
		{
			facts->index_infos[facts->nindexes] = info;
			facts->indexes[facts->nindexes++] = lfirst_oid(cell);
		}
		index_close(index, AccessShareLock);
	}
	return all_simple;
}

/*
 * Find out about a table that is open and locked, or refuse it.  If an
 * invalidation comes meanwhile, what was found out serves while the table is
 * open, since the lock keeps its shape as it is, and is not kept for later.
 */
static void
learn(StoreFacts *facts, Oid schema, StoreTableNo no, Relation rel)
{
	const StoreTableDef *def = &store_tables[no];
	StoreFacts	learned;
	uint64		before;

	if (known_contexts[no] == NULL)
		known_contexts[no] = AllocSetContextCreate(CacheMemoryContext,
												   "idempotency table",
												   ALLOCSET_SMALL_SIZES);
	before = invalidations;
	facts->valid = false;
	MemoryContextReset(known_contexts[no]);
	memset(&learned, 0, sizeof(learned));
	learned.schema = schema;
	learned.relid = RelationGetRelid(rel);
	check_kind(rel, def->name);
	for (int i = 0; i < def->ncolumns; i++)
		learned.attnums[i] = find_column(rel, def->name, &def->columns[i]);
	check_primary_key(rel, def->name, &learned);
	learned.insert_runs_no_user_code =
		learn_indexes(rel, &learned, known_contexts[no]) &&
		insert_runs_no_user_code(rel, def, &learned);
	learned.delete_runs_no_user_code =
		rel->trigdesc == NULL && rel->rd_rules == NULL;
	*facts = learned;
	facts->valid = invalidations == before;
}

/*
 * Opening takes the lock and reads the invalidations that others have sent, so
 * what is still valid after that holds while the table is open.
 */
static bool
open_known(StoreTable *table, const StoreFacts *facts, Oid schema,
		   LOCKMODE lockmode)
{
	if (!facts->valid || facts->schema != schema || citus_is_loaded())
		return false;
	table->rel = try_table_open(facts->relid, lockmode);
	if (table->rel == NULL)
		return false;			/* dropped just now */
	table->facts = facts;
	if (facts->valid)
		return true;
	table_close(table->rel, lockmode);
	return false;
}

Relation
store_lock_table(Oid schema, const char *table, LOCKMODE lockmode)
{
	Oid			relid = get_relname_relid(table, schema);
	Relation	rel;

	/* Locking also reads the invalidations that plans depend on. */
	rel = OidIsValid(relid) ? try_table_open(relid, lockmode) : NULL;
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" of extension \"idempotency\" does not exist", table),
				 errhint("Create the extension anew; its functions and tables belong in one schema.")));
	return rel;
}

void
store_table_open(StoreTable *table, Oid schema, StoreTableNo no,
				 LOCKMODE lockmode)
{
	StoreFacts *facts = &known[no];

	Assert(no < STORE_CHECKED_TABLES);
	if (open_known(table, facts, schema, lockmode))
		return;
	table->rel = store_lock_table(schema, store_tables[no].name, lockmode);
	learn(facts, schema, no, table->rel);
	table->facts = facts;
}

void
store_table_close(StoreTable *table)
{
	table_close(table->rel, NoLock);
}

void
store_table_init(void)
{
	CacheRegisterRelcacheCallback(invalidate_facts, (Datum) 0);
}

/* Rows --------------------------------------------------------------------- */

bool
store_table_is_empty(const StoreTable *table)
{
	return RelationGetNumberOfBlocks(table->rel) == 0;
}

/* By its header, is no other version to replace this one? */
static bool
is_last_version(TupleTableSlot *slot)
{
	HeapTupleHeader header;

	Assert(TTS_IS_BUFFERTUPLE(slot));
	header = ((BufferHeapTupleTableSlot *) slot)->base.tuple->t_data;
	return (header->t_infomask & HEAP_XMAX_INVALID) != 0;
}

/*
 * Of the versions of a row, a dirty snapshot shows those that are not known to
 * be dead.  One that is being replaced may come before the one that replaces
 * it, so go on to the last; the snapshot has the transaction that writes it.  The
 * columns are fetched at once: a look at the next version spoils the slot's
 * tuple, also when that version is not to be seen.
 */
static bool
scan_versions(IndexScanDesc scan, SnapshotData *dirty, StoreFound *found,
			  Inserter *inserter)
{
	TupleTableSlot *slot = found->slot;
	bool		any = false;

	inserter->xid = InvalidTransactionId;
	while (!TransactionIdIsValid(inserter->xid) &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		any = true;
		slot_getallattrs(slot);
		found->tid = slot->tts_tid;
		found->writer = HeapTupleHeaderGetXmin(((BufferHeapTupleTableSlot *) slot)->base.tuple->t_data);
		inserter->xid = dirty->xmin;
		inserter->token = dirty->speculativeToken;
		if (!TransactionIdIsValid(inserter->xid) && is_last_version(slot))
			break;
	}
	return any && !TransactionIdIsValid(inserter->xid);
}

static bool
scan_committed(IndexScanDesc scan, StoreFound *found)
{
	TupleTableSlot *slot = found->slot;

	if (!index_getnext_slot(scan, ForwardScanDirection, slot))
		return false;
	slot_getallattrs(slot);
	found->tid = slot->tts_tid;
	found->writer = HeapTupleHeaderGetXmin(((BufferHeapTupleTableSlot *) slot)->base.tuple->t_data);
	return true;
}

static void
fill_row(const StoreTable *table, int ncolumns, StoreFound *found)
{
	for (int i = 0; i < ncolumns; i++)
	{
		int			at = table->facts->attnums[i] - 1;

		found->row.values[i] = found->slot->tts_values[at];
		found->row.isnull[i] = found->slot->tts_isnull[at];
	}
}

bool
store_table_find(const StoreTable *table, const KeyId *id, StoreView view,
				 StoreFound *found, Inserter *inserter)
{
	Relation	index = index_open(table->facts->primary_key, AccessShareLock);
	SnapshotData dirty;
	Snapshot	snapshot;
	IndexScanDesc scan;
	ScanKeyData key;
	bool		is_there;

	InitDirtySnapshot(dirty);
	snapshot = view == STORE_VIEW_NOW ? &dirty :
		RegisterSnapshot(GetLatestSnapshot());
	found->slot = table_slot_create(table->rel, NULL);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	scan = compat_index_beginscan(table->rel, index, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	is_there = view == STORE_VIEW_NOW ?
		scan_versions(scan, &dirty, found, inserter) :
		scan_committed(scan, found);
	index_endscan(scan);		/* the slot keeps its own pin */
	if (view == STORE_VIEW_COMMITTED)
		UnregisterSnapshot(snapshot);

	/* The table's lock keeps the index; its own would be one more to hold. */
	index_close(index, AccessShareLock);
	if (is_there)
		fill_row(table, store_tables[table->facts - known].ncolumns, found);
	else
		ExecDropSingleTupleTableSlot(found->slot);
	return is_there;
}

void
store_found_free(StoreFound *found)
{
	ExecDropSingleTupleTableSlot(found->slot);
}

/* Insert the row's entry into the table's i-th index, as the executor would. */
static void
insert_index_entry(const StoreTable *table, int i, HeapTuple tuple,
				   const Datum *values, const bool *isnull)
{
	Relation	index = index_open(table->facts->indexes[i], RowExclusiveLock);
	IndexInfo  *info = table->facts->index_infos[i];
	Datum		entry[INDEX_MAX_KEYS];
	bool		entry_isnull[INDEX_MAX_KEYS];

	for (int col = 0; col < info->ii_NumIndexAttrs; col++)
	{
		entry[col] = values[info->ii_IndexAttrNumbers[col] - 1];
		entry_isnull[col] = isnull[info->ii_IndexAttrNumbers[col] - 1];
	}

	/* What an access method keeps there must not outlive this insert. */
	info->ii_AmCache = NULL;
	info->ii_Context = CurrentMemoryContext;
	(void) index_insert(index, entry, entry_isnull, &tuple->t_self, table->rel,
						index->rd_index->indisunique ?
						UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
						false, info);
	compat_index_insert_cleanup(index, info);
	info->ii_AmCache = NULL;
	index_close(index, NoLock);
}

/*
 * As CatalogTupleInsert() does for the catalogs.  Indexes in the making that
 * do not take entries yet are left out, as by the executor.
 */
static void
insert_tuple(const StoreTable *table, const StoreRow *row)
{
	const StoreTableDef *def = &store_tables[table->facts - known];
	Datum		values[STORE_MAX_COLUMNS];
	bool		isnull[STORE_MAX_COLUMNS];
	HeapTuple	tuple;

	for (int i = 0; i < def->ncolumns; i++)
	{
		int			at = table->facts->attnums[i] - 1;

		values[at] = row->values[i];
		isnull[at] = row->isnull[i];
	}
	tuple = heap_form_tuple(RelationGetDescr(table->rel), values, isnull);
	tuple->t_tableOid = RelationGetRelid(table->rel);
	simple_heap_insert(table->rel, tuple);
	for (int i = 0; i < table->facts->nindexes; i++)
	{
		if (table->facts->index_infos[i]->ii_ReadyForInserts)
			insert_index_entry(table, i, tuple, values, isnull);
	}
	heap_freetuple(tuple);
}

void
store_table_insert(const StoreTable *table, const StoreRow *row)
{
	MemoryContext caller = CurrentMemoryContext;

	Assert(table->facts->insert_runs_no_user_code);
	PreventCommandIfReadOnly("INSERT");
	PG_TRY();
	{
		insert_tuple(table, row);
	}
	PG_CATCH();
	{
		store_rethrow_conflict(caller, NULL, NULL,
							   NameStr(table->facts->primary_key_name));
	}
	PG_END_TRY();
}

TM_Result
store_table_delete(const StoreTable *table, ItemPointer tid, bool wait)
{
	TM_FailureData failure;

	Assert(table->facts->delete_runs_no_user_code);
	CheckCmdReplicaIdentity(table->rel, CMD_DELETE);
	return compat_tuple_delete(table->rel, tid, GetCurrentCommandId(true),
							   GetActiveSnapshot(), wait, &failure);
}
