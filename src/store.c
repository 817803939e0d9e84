/*-------------------------------------------------------------------------
 *
 * store.c
 *	  What is stored of a key: read; and finished keys: insert, replace,
 *	  delete.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_conflict.h"
#include "store_frame.h"
#include "store_table.h"

/* $2 null: expired or not. */
static StorePlan plan_delete_key = {
	"DELETE FROM %s.idempotency_keys WHERE id OPERATOR(pg_catalog.=) $1"
	" AND ($2 IS NULL OR expires_at OPERATOR(pg_catalog.<=) $2)",
	2, {UUIDOID, TIMESTAMPTZOID}
};

void
store_init(void)
{
	store_table_init();
}

void
store_check_tables(Oid schema)
{
	StoreTable	table;

	for (StoreTableNo no = 0; no < STORE_CHECKED_TABLES; no++)
	{
		store_table_open(&table, schema, no, AccessShareLock);
		store_table_close(&table);
	}
}

static void
read_key(const KeyName *name, Stored *stored)
{
	StoreTable	keys;
	StoreFound	found;

	store_table_open(&keys, name->schema, STORE_KEYS, AccessShareLock);
	stored->has_key = store_table_find(&keys, &name->id, STORE_VIEW_NOW,
									   &found, &stored->inserter);
	if (stored->has_key)
	{
		stored->other_name = !store_row_has_name(&found.row, name);
		store_key_from_row(&found.row, &stored->key);
		store_found_free(&found);
	}
	store_table_close(&keys);
}

/*
 * Only the key's lock, which keeps the claim's readers and writers in order,
 * lets its row be read as it is now: otherwise a version could be missed while
 * another one replaces it.
 */
static void
read_claim(const KeyName *name, bool have_key_lock, Stored *stored)
{
	StoreTable	claims;
	StoreFound	found;
	Inserter	inserter;

	store_table_open(&claims, name->schema, STORE_CLAIMS, AccessShareLock);

	/* If no leases are used the table has no pages, and needs no scan. */
	if (!store_table_is_empty(&claims))
		stored->has_claim = store_table_find(&claims, &name->id,
											 have_key_lock ? STORE_VIEW_NOW :
											 STORE_VIEW_COMMITTED,
											 &found, &inserter);
	if (stored->has_claim)
	{
		stored->other_name |= !store_row_has_name(&found.row, name);
		stored->claim_writer = found.writer;
		store_claim_from_row(&found.row, &stored->claim);
		store_found_free(&found);
	}
	store_table_close(&claims);
}

/*
 * The two tables are not read at one moment: without the key's lock, an
 * attempt may finish in between, whose claim is then gone and whose key was
 * not yet there.  Hence the second look at the keys.
 *
 * A key that has not expired needs no look for a claim: finish took it away
 * when it wrote the key, and none is made while such a key is there.
 */
void
store_read(const KeyName *name, bool have_key_lock, Stored *stored)
{
	memset(stored, 0, sizeof(*stored));
	read_key(name, stored);
	stored->read_at = GetCurrentTimestamp();
	if (stored->has_key && stored->key.expires_at > stored->read_at)
		return;
	read_claim(name, have_key_lock, stored);
	if (!have_key_lock && !stored->has_claim)
		read_key(name, stored);
}

void
store_wait_for(const Inserter *inserter)
{
	if (inserter->token != 0)
		SpeculativeInsertionWait(inserter->xid, inserter->token);
	else
		XactLockTableWait(inserter->xid, NULL, NULL, XLTW_None);
}

bool
store_is_visible(TransactionId writer)
{
	return !TransactionIdIsNormal(writer) ||
		TransactionIdIsCurrentTransactionId(writer) ||
		!XidInMVCCSnapshot(writer, GetTransactionSnapshot());
}

/*
 * Delete by a statement.  The row is there unless another transaction is
 * removing it.
 */
static bool
delete_by_sql(const KeyName *name, TimestampTz expired_by)
{
	StoreFrame	frame;
	Datum		values[2] = {UUIDPGetDatum(&name->id), TimestampTzGetDatum(expired_by)};
	char		nulls[2] = {' ', expired_by == 0 ? 'n' : ' '};
	bool		deleted;

	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_key, values, nulls, SPI_OK_DELETE);
	deleted = SPI_processed > 0;
	if (!deleted)
	{
		StoreTable	keys;
		StoreFound	found;
		Inserter	inserter;

		store_table_open(&keys, name->schema, STORE_KEYS, RowExclusiveLock);
		if (store_table_find(&keys, &name->id, STORE_VIEW_NOW, &found,
							 &inserter))
			store_report_not_written(&frame);
		store_table_close(&keys);
	}
	store_leave(&frame);
	return deleted;
}

/*
 * Delete a key's row, which must have expired by expired_by unless that is 0.
 * Waits for a transaction that has locked or is removing it.  False if there is
 * no such row.
 */
static bool
delete_key(const KeyName *name, TimestampTz expired_by)
{
	StoreTable	keys;
	StoreFound	found;
	Inserter	inserter;
	TM_Result	result = TM_Deleted;

	store_table_open(&keys, name->schema, STORE_KEYS, RowExclusiveLock);
	if (!keys.facts->delete_runs_no_user_code)
	{
		store_table_close(&keys);
		return delete_by_sql(name, expired_by);
	}
	if (store_table_find(&keys, &name->id, STORE_VIEW_NOW, &found, &inserter))
	{
		if (expired_by == 0 ||
			DatumGetTimestampTz(found.row.values[KEY_EXPIRES_AT]) <= expired_by)
			result = store_table_delete(&keys, &found.tid, true);
		store_found_free(&found);
	}
	if (result != TM_Ok && result != TM_Deleted)
		store_report_conflict();
	if (result == TM_Ok)
		CommandCounterIncrement();
	store_table_close(&keys);
	return result == TM_Ok;
}

/* Insert a row, without SQL where the table allows it; true if so. */
static bool
insert_row(Oid schema, StoreTableNo no, const StoreRow *row)
{
	StoreTable	table;
	bool		directly;

	store_table_open(&table, schema, no, RowExclusiveLock);
	directly = table.facts->insert_runs_no_user_code;
	if (directly)
		store_table_insert(&table, row);
	store_table_close(&table);
	if (!directly)
		store_insert_by_sql(schema, no, row);
	return directly;
}

void
store_insert_one_of_many(const KeyName *name, const StoredKey *key,
						 bool delete_expired_first)
{
	StoreRow	row;

	Assert(keylock_is_held(&name->id));
	Assert(key->expires_at >= key->finished_at);
	if (delete_expired_first)
		(void) delete_key(name, key->finished_at);
	store_row_from_key(name, key, &row);
	(void) insert_row(name->schema, STORE_KEYS, &row);
}

void
store_end_many(void)
{
	CommandCounterIncrement();
}

void
store_insert_key(const KeyName *name, const StoredKey *key,
				 bool delete_expired_first)
{
	store_insert_one_of_many(name, key, delete_expired_first);
	CommandCounterIncrement();
}

void
store_update_key(const KeyName *name, const StoredKey *key)
{
	StoreRow	row;

	Assert(keylock_is_held(&name->id));
	store_row_from_key(name, key, &row);
	store_update_by_sql(name->schema, STORE_KEYS, &row, key->attempt_no);
}

bool
store_delete_key(const KeyName *name)
{
	Assert(keylock_is_held(&name->id));
	return delete_key(name, 0);
}

void
store_insert_claim(const KeyName *name, const StoredClaim *claim)
{
	StoreRow	row;

	Assert(keylock_is_held(&name->id));
	store_row_from_claim(name, claim, &row);
	(void) insert_row(name->schema, STORE_CLAIMS, &row);
	CommandCounterIncrement();
}
