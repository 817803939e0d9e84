/*-------------------------------------------------------------------------
 *
 * store_direct.c
 *	  Rows read, inserted or deleted without SQL.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "store_direct.h"

static bool
is_plain_table(Relation table, const Oid *types, int ntypes)
{
	TupleDesc	desc = RelationGetDescr(table);

	if (table->rd_rel->relkind != RELKIND_RELATION ||
		table->rd_rel->relam != HEAP_TABLE_AM_OID ||
		table->rd_rel->relhassubclass ||
		table->rd_rel->relispartition ||
		table->rd_rel->relrowsecurity ||
		desc->natts < ntypes)
		return false;
	for (int i = 0; i < ntypes; i++)
	{
		if (TupleDescAttr(desc, i)->attisdropped ||
			TupleDescAttr(desc, i)->atttypid != types[i])
			return false;
	}
	return true;
}

static bool
is_plain_primary_key(Relation index)
{
	return index->rd_rel->relam == BTREE_AM_OID &&
		index->rd_index->indisvalid &&
		index->rd_index->indnatts == 1 &&
		index->rd_index->indkey.values[0] == 1;
}

/* Open the table if it is plain, or NULL. */
static Relation
open_plain_table(Oid schema, const char *name, LOCKMODE lockmode,
				 const Oid *types, int ntypes)
{
	Oid			relid = get_relname_relid(name, schema);
	Relation	table;

	if (!OidIsValid(relid))
		return NULL;
	table = try_table_open(relid, lockmode);
	if (table == NULL)
		return NULL;			/* dropped just now */
	if (is_plain_table(table, types, ntypes))
		return table;
	table_close(table, NoLock);
	return NULL;
}

bool
direct_open(DirectTable *direct, Oid schema, const char *table,
			const Oid *types, int ntypes)
{
	Oid			indexid;

	direct->index = NULL;
	direct->table = open_plain_table(schema, table, AccessShareLock,
									 types, ntypes);
	if (direct->table == NULL)
		return false;
	indexid = compat_primary_key(direct->table);
	if (OidIsValid(indexid))
		direct->index = index_open(indexid, AccessShareLock);
	if (direct->index != NULL && is_plain_primary_key(direct->index))
		return true;
	direct_close(direct);
	return false;
}

/* The locks stay to the end of the transaction, as a statement's would. */
void
direct_close(DirectTable *direct)
{
	if (direct->index != NULL)
		index_close(direct->index, NoLock);
	table_close(direct->table, NoLock);
}

bool
direct_is_empty(Oid schema, const char *name)
{
	Relation	table = open_plain_table(schema, name, AccessShareLock, NULL, 0);
	bool		empty;

	if (table == NULL)
		return false;
	empty = RelationGetNumberOfBlocks(table) == 0;
	table_close(table, NoLock);
	return empty;
}

TupleTableSlot *
direct_read(DirectTable *direct, const KeyId *id, Snapshot snapshot)
{
	TupleTableSlot *slot;
	IndexScanDesc scan;
	ScanKeyData key;
	bool		found;

	slot = table_slot_create(direct->table, NULL);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	scan = compat_index_beginscan(direct->table, direct->index, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	if (found)
		slot_getallattrs(slot);
	index_endscan(scan);		/* the slot keeps its own pin */
	if (found)
		return slot;
	ExecDropSingleTupleTableSlot(slot);
	return NULL;
}

/* As the executor looks for a conflict in a unique index. */
TupleTableSlot *
direct_read_now(DirectTable *direct, const KeyId *id, Inserter *inserter)
{
	TupleTableSlot *slot = table_slot_create(direct->table, NULL);
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData key;
	bool		found = false;

	InitDirtySnapshot(dirty);
	inserter->xid = InvalidTransactionId;
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	scan = compat_index_beginscan(direct->table, direct->index, &dirty, 1);
	index_rescan(scan, &key, 1, NULL, 0);

	/*
	 * A row that is being replaced may come before the one that replaces it.
	 * The columns are fetched at once: a look at the next version spoils the
	 * slot's tuple, also when that version is not to be seen.
	 */
	while (!TransactionIdIsValid(inserter->xid) &&
		   index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		found = true;
		slot_getallattrs(slot);
		inserter->xid = dirty.xmin;
		inserter->token = dirty.speculativeToken;
	}
	index_endscan(scan);		/* the slot keeps its own pin */
	if (found && !TransactionIdIsValid(inserter->xid))
		return slot;
	ExecDropSingleTupleTableSlot(slot);
	return NULL;
}

void
store_wait_for(const Inserter *inserter)
{
	if (inserter->token != 0)
		SpeculativeInsertionWait(inserter->xid, inserter->token);
	else
		XactLockTableWait(inserter->xid, NULL, NULL, XLTW_None);
}

/* Nothing that an insert would run may be anybody's own code. */
static bool
has_nothing_to_run(Relation table, int natts)
{
	TupleDesc	desc = RelationGetDescr(table);

	return desc->natts == natts &&
		table->trigdesc == NULL &&
		table->rd_rules == NULL &&
		(desc->constr == NULL ||
		 (desc->constr->num_check == 0 && !desc->constr->has_generated_stored));
}

static bool
indexes_are_plain(const ResultRelInfo *target)
{
	for (int i = 0; i < target->ri_NumIndices; i++)
	{
		const IndexInfo *info = target->ri_IndexRelationInfo[i];

		if (info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
			info->ii_ExclusionOps != NULL)
			return false;
	}
	return true;
}

bool
direct_insert(Oid schema, const char *table, const Oid *types, int ntypes,
			  const Datum *values, const bool *nulls)
{
	Relation	rel = open_plain_table(schema, table, RowExclusiveLock,
									   types, ntypes);
	EState	   *estate;
	ResultRelInfo *target;
	bool		plain;

	if (rel == NULL)
		return false;
	if (!has_nothing_to_run(rel, ntypes))
	{
		table_close(rel, NoLock);
		return false;
	}

	PreventCommandIfReadOnly("INSERT");
	estate = CreateExecutorState();
	estate->es_output_cid = GetCurrentCommandId(true);
	target = makeNode(ResultRelInfo);
	InitResultRelInfo(target, rel, 0, NULL, 0);
	ExecOpenIndices(target, false);
	plain = indexes_are_plain(target);
	if (plain)
	{
		TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
														&TTSOpsVirtual);

		memcpy(slot->tts_values, values, sizeof(Datum) * ntypes);
		memcpy(slot->tts_isnull, nulls, sizeof(bool) * ntypes);
		ExecStoreVirtualTuple(slot);
		ExecSimpleRelationInsert(target, estate, slot);
		ExecDropSingleTupleTableSlot(slot);
		CommandCounterIncrement();
	}
	ExecCloseIndices(target);
	FreeExecutorState(estate);
	table_close(rel, NoLock);
	return plain;
}

bool
direct_delete(Oid schema, const char *table, ItemPointer tids, int ntids,
			  int64 *deleted)
{
	Relation	rel = open_plain_table(schema, table, RowExclusiveLock, NULL, 0);
	CommandId	cid;

	if (rel == NULL)
		return false;
	if (rel->trigdesc != NULL || rel->rd_rules != NULL)
	{
		table_close(rel, NoLock);
		return false;
	}

	CheckCmdReplicaIdentity(rel, CMD_DELETE);
	cid = GetCurrentCommandId(true);
	for (int i = 0; i < ntids; i++)
	{
		TM_FailureData failure;

		if (table_tuple_delete(rel, &tids[i], cid, GetActiveSnapshot(),
							   InvalidSnapshot, false, &failure,
							   false) == TM_Ok)
			(*deleted)++;
	}
	CommandCounterIncrement();
	table_close(rel, NoLock);
	return true;
}
