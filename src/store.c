/*-------------------------------------------------------------------------
 *
 * store.c
 *	  What is stored of a key: read; and finished keys: insert, delete.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_direct.h"
#include "store_frame.h"
#include "timespan.h"

/*
 * One statement for both tables, so that one snapshot sees a key that is just
 * being finished either as a claim or as a key, never as both or neither.
 */
static StorePlan plan_read = {
	"SELECT false, fingerprint, attempt, first_seen_at, finished_at,"
	" expires_at, status, headers, response, body,"
	" NULL::pg_catalog.text, NULL::pg_catalog.interval,"
	" NULL::pg_catalog.interval, NULL::pg_catalog.timestamptz, failed"
	" FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1"
	" UNION ALL "
	"SELECT true, fingerprint, attempt, first_seen_at, claimed_at,"
	" lease_until, NULL::pg_catalog.int4, NULL::pg_catalog.jsonb, state,"
	" NULL::pg_catalog.bytea, checkpoint, retention, lease, retry_at,"
	" NULL::pg_catalog.bool"
	" FROM %s." STORE_CLAIMS " WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static StorePlan plan_insert_key = {
	"INSERT INTO %s." STORE_KEYS " (id, scope, key, fingerprint, attempt,"
	" status, headers, response, body, first_seen_at, finished_at, expires_at,"
	" failed)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
	13, {UUIDOID, TEXTOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, JSONBOID,
		JSONBOID, BYTEAOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID}
};

/*
 * A prune may be removing the row already.  It is passed over then: the
 * insert that follows waits for the prune's end, in every isolation level,
 * where a second DELETE would fail in two of them.
 */
static StorePlan plan_delete_expired_key = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY("
	"SELECT id FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1"
	" AND expires_at OPERATOR(pg_catalog.<=) $2 FOR UPDATE SKIP LOCKED))",
	2, {UUIDOID, TIMESTAMPTZOID}
};

static StorePlan plan_delete_key = {
	"DELETE FROM %s." STORE_KEYS " WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static void
read_key_row(StoreFrame *frame, int row, StoredKey *key)
{
	Response   *response = &key->response;
	bool		isnull;

	store_fetch_fingerprint(frame, row, 2, &key->fingerprint);
	key->attempt = DatumGetInt32(store_fetch(row, 3, &isnull));
	key->first_seen_at = DatumGetTimestampTz(store_fetch(row, 4, &isnull));
	key->finished_at = DatumGetTimestampTz(store_fetch(row, 5, &isnull));
	key->expires_at = DatumGetTimestampTz(store_fetch(row, 6, &isnull));
	response->status = DatumGetInt32(store_fetch(row, 7, &isnull));
	response->has_status = !isnull;
	response->headers = store_fetch_varlena(frame, row, 8);
	response->response = store_fetch_varlena(frame, row, 9);
	response->body = store_fetch_varlena(frame, row, 10);
	response->failed = DatumGetBool(store_fetch(row, 15, &isnull));
}

static void
read_claim_row(StoreFrame *frame, int row, StoredClaim *claim)
{
	bool		isnull;

	store_fetch_fingerprint(frame, row, 2, &claim->fingerprint);
	claim->attempt = DatumGetInt32(store_fetch(row, 3, &isnull));
	claim->first_seen_at = DatumGetTimestampTz(store_fetch(row, 4, &isnull));
	claim->claimed_at = DatumGetTimestampTz(store_fetch(row, 5, &isnull));
	claim->lease_until = DatumGetTimestampTz(store_fetch(row, 6, &isnull));
	claim->state = store_fetch_varlena(frame, row, 9);
	claim->checkpoint = store_fetch_varlena(frame, row, 11);
	claim->retention = store_fetch_timespan(row, 12);
	claim->lease = store_fetch_timespan(row, 13);
	(void) store_fetch(row, 14, &isnull);
	claim->released = !isnull;
}

static void
read_by_sql(const KeyName *name, Stored *stored)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(&name->id)};

	store_lock(name->schema, STORE_CLAIMS, AccessShareLock);
	store_enter(&frame, name->schema, STORE_KEYS, AccessShareLock);
	store_execute(&frame, &plan_read, values, NULL, SPI_OK_SELECT);
	for (int row = 0; row < SPI_processed; row++)
	{
		bool		isnull;

		if (DatumGetBool(store_fetch(row, 1, &isnull)))
		{
			stored->has_claim = true;
			read_claim_row(&frame, row, &stored->claim);
		}
		else
		{
			stored->has_key = true;
			read_key_row(&frame, row, &stored->key);
		}
	}
	store_leave(&frame);
}

/* The columns of the two tables, as the install script made them. */
enum
{
	KEY_FINGERPRINT = 4, KEY_ATTEMPT, KEY_STATUS, KEY_HEADERS, KEY_RESPONSE,
	KEY_BODY, KEY_FIRST_SEEN_AT, KEY_FINISHED_AT, KEY_EXPIRES_AT, KEY_FAILED,
	KEY_COLUMNS = KEY_FAILED
};

static const Oid key_types[] = {
	UUIDOID, TEXTOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, JSONBOID,
	JSONBOID, BYTEAOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	BOOLOID
};

enum
{
	CLAIM_FINGERPRINT = 4, CLAIM_REQUEST, CLAIM_ATTEMPT, CLAIM_CHECKPOINT,
	CLAIM_STATE, CLAIM_LAST_ERROR, CLAIM_RETENTION, CLAIM_LEASE,
	CLAIM_FIRST_SEEN_AT, CLAIM_CLAIMED_AT, CLAIM_LEASE_UNTIL, CLAIM_RETRY_AT,
	CLAIM_COLUMNS = CLAIM_RETRY_AT
};

static const Oid claim_types[] = {
	UUIDOID, TEXTOID, TEXTOID, BYTEAOID, JSONBOID, INT4OID, TEXTOID, JSONBOID,
	TEXTOID, INTERVALOID, INTERVALOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID
};

static Datum
column(TupleTableSlot *slot, int col)
{
	return slot->tts_isnull[col - 1] ? (Datum) 0 : slot->tts_values[col - 1];
}

static void *
column_varlena(TupleTableSlot *slot, int col)
{
	return slot->tts_isnull[col - 1] ? NULL :
		PG_DETOAST_DATUM_COPY(slot->tts_values[col - 1]);
}

static int64
column_timespan(TupleTableSlot *slot, int col)
{
	int64		usecs;

	if (!timespan_from_interval(DatumGetIntervalP(column(slot, col)), &usecs))
		elog(ERROR, "stored interval is out of range");
	return usecs;
}

static void
column_fingerprint(TupleTableSlot *slot, int col, Fingerprint *result)
{
	store_set_fingerprint(column_varlena(slot, col), result);
}

static void
read_key_slot(TupleTableSlot *slot, StoredKey *key)
{
	Response   *response = &key->response;

	column_fingerprint(slot, KEY_FINGERPRINT, &key->fingerprint);
	key->attempt = DatumGetInt32(column(slot, KEY_ATTEMPT));
	key->first_seen_at = DatumGetTimestampTz(column(slot, KEY_FIRST_SEEN_AT));
	key->finished_at = DatumGetTimestampTz(column(slot, KEY_FINISHED_AT));
	key->expires_at = DatumGetTimestampTz(column(slot, KEY_EXPIRES_AT));
	response->has_status = !slot->tts_isnull[KEY_STATUS - 1];
	response->status = DatumGetInt32(column(slot, KEY_STATUS));
	response->headers = column_varlena(slot, KEY_HEADERS);
	response->response = column_varlena(slot, KEY_RESPONSE);
	response->body = column_varlena(slot, KEY_BODY);
	response->failed = DatumGetBool(column(slot, KEY_FAILED));
}

static void
read_claim_slot(TupleTableSlot *slot, StoredClaim *claim)
{
	column_fingerprint(slot, CLAIM_FINGERPRINT, &claim->fingerprint);
	claim->attempt = DatumGetInt32(column(slot, CLAIM_ATTEMPT));
	claim->first_seen_at = DatumGetTimestampTz(column(slot, CLAIM_FIRST_SEEN_AT));
	claim->claimed_at = DatumGetTimestampTz(column(slot, CLAIM_CLAIMED_AT));
	claim->lease_until = DatumGetTimestampTz(column(slot, CLAIM_LEASE_UNTIL));
	claim->state = column_varlena(slot, CLAIM_STATE);
	claim->checkpoint = column_varlena(slot, CLAIM_CHECKPOINT);
	claim->retention = column_timespan(slot, CLAIM_RETENTION);
	claim->lease = column_timespan(slot, CLAIM_LEASE);
	claim->released = !slot->tts_isnull[CLAIM_RETRY_AT - 1];
}

/*
 * Under SERIALIZABLE a read by a snapshot, through an index, also locks the
 * page against inserts, and transactions on different keys would fail each
 * other.  A key's row is inserted and deleted, never updated, so it can be
 * read as it is, which takes no such locks.  A claim's is updated; only the
 * key's lock, which keeps its readers and writers in order, lets it be read
 * so, and otherwise it is read by the latest snapshot.
 */
static Snapshot
snapshot_for_claim(bool locked)
{
	return locked && IsolationIsSerializable() ? SnapshotSelf :
		GetActiveSnapshot();
}

static bool
read_key_directly(const KeyName *name, Stored *stored)
{
	DirectTable keys;
	TupleTableSlot *slot;

	if (!direct_open(&keys, name->schema, STORE_KEYS, key_types, KEY_COLUMNS))
		return false;
	PushActiveSnapshot(GetLatestSnapshot());
	slot = direct_read_now(&keys, &name->id, &stored->inserter);
	stored->has_key = slot != NULL;
	if (slot != NULL)
	{
		read_key_slot(slot, &stored->key);
		ExecDropSingleTupleTableSlot(slot);
	}
	PopActiveSnapshot();
	direct_close(&keys);
	return true;
}

static bool
read_claim_directly(const KeyName *name, bool locked, Stored *stored)
{
	DirectTable claims;
	TupleTableSlot *slot;

	/* Where no leases are used a page count tells as much as a scan. */
	if (direct_is_empty(name->schema, STORE_CLAIMS))
		return true;
	if (!direct_open(&claims, name->schema, STORE_CLAIMS,
					 claim_types, CLAIM_COLUMNS))
		return false;
	PushActiveSnapshot(GetLatestSnapshot());
	slot = direct_read(&claims, &name->id, snapshot_for_claim(locked));
	stored->has_claim = slot != NULL;
	if (slot != NULL)
	{
		read_claim_slot(slot, &stored->claim);
		ExecDropSingleTupleTableSlot(slot);
	}
	PopActiveSnapshot();
	direct_close(&claims);
	return true;
}

/*
 * Each table is read with a snapshot newer than its lock, since a rewrite by
 * ALTER TABLE hides the rows from older ones.  So the two are not read at one
 * moment: without the key's lock an attempt may finish in between, whose claim
 * is then gone and whose key was not yet there.  Hence the second look.
 */
static bool
read_directly(const KeyName *name, bool locked, Stored *stored)
{
	if (!read_key_directly(name, stored))
		return false;
	stored->read_at = GetCurrentTimestamp();

	/*
	 * A key that is honoured needs no look for a claim: finish took it away
	 * when it wrote the key, and none is made while the key is honoured.
	 */
	if (stored->has_key && stored->key.expires_at > stored->read_at)
		return true;
	if (!read_claim_directly(name, locked, stored))
		return false;
	return locked || stored->has_claim || read_key_directly(name, stored);
}

void
store_read(const KeyName *name, bool locked, Stored *stored)
{
	memset(stored, 0, sizeof(*stored));
	if (read_directly(name, locked, stored))
		return;
	memset(stored, 0, sizeof(*stored));
	read_by_sql(name, stored);
	stored->read_at = GetCurrentTimestamp();
}

/* The row of a finished key, in the order of the table's columns. */
static void
form_key_row(const KeyName *name, const StoredKey *key, Datum *values,
			 bool *nulls)
{
	const Response *response = &key->response;
	const void *const pointers[KEY_COLUMNS] = {
		[KEY_FINGERPRINT - 1] = store_fingerprint(&key->fingerprint),
		[KEY_HEADERS - 1] = response->headers,
		[KEY_RESPONSE - 1] = response->response,
		[KEY_BODY - 1] = response->body,
	};

	for (int i = 0; i < KEY_COLUMNS; i++)
	{
		values[i] = PointerGetDatum(pointers[i]);
		nulls[i] = pointers[i] == NULL;
	}
	values[0] = UUIDPGetDatum(&name->id);
	values[1] = PointerGetDatum(name->scope);
	values[2] = PointerGetDatum(name->key);
	values[KEY_ATTEMPT - 1] = Int32GetDatum(key->attempt);
	values[KEY_FIRST_SEEN_AT - 1] = TimestampTzGetDatum(key->first_seen_at);
	values[KEY_FINISHED_AT - 1] = TimestampTzGetDatum(key->finished_at);
	values[KEY_EXPIRES_AT - 1] = TimestampTzGetDatum(key->expires_at);
	nulls[0] = nulls[1] = nulls[2] = nulls[KEY_ATTEMPT - 1] = false;
	nulls[KEY_FIRST_SEEN_AT - 1] = nulls[KEY_FINISHED_AT - 1] = false;
	nulls[KEY_EXPIRES_AT - 1] = false;
	values[KEY_STATUS - 1] = Int32GetDatum(response->status);
	nulls[KEY_STATUS - 1] = !response->has_status;
	values[KEY_FAILED - 1] = BoolGetDatum(response->failed);
	nulls[KEY_FAILED - 1] = !response->failed;	/* null takes no room */
}

static void
delete_expired_key(const KeyName *name, TimestampTz now)
{
	Datum		values[2] = {UUIDPGetDatum(&name->id), TimestampTzGetDatum(now)};
	StoreFrame	frame;

	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_expired_key, values, NULL,
				  SPI_OK_DELETE);
	store_leave(&frame);
}

static void
insert_by_sql(const KeyName *name, Datum *values, const bool *nulls)
{
	StoreFrame	frame;
	char		spi_nulls[KEY_COLUMNS];

	for (int i = 0; i < KEY_COLUMNS; i++)
		spi_nulls[i] = nulls[i] ? 'n' : ' ';
	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	store_execute_insert(&frame, &plan_insert_key, values, spi_nulls);
	store_leave(&frame);
}

void
store_insert_key(const KeyName *name, const StoredKey *key,
				 bool replaces_expired)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
	bool		inserted = false;

	form_key_row(name, key, values, nulls);
	if (replaces_expired)
		delete_expired_key(name, key->finished_at);
	PG_TRY();
	{
		inserted = direct_insert(name->schema, STORE_KEYS,
								 key_types, KEY_COLUMNS, values, nulls);
	}
	PG_CATCH();
	{
		store_rethrow_conflict(caller, name->schema, STORE_KEYS);
	}
	PG_END_TRY();
	if (!inserted)
		insert_by_sql(name, values, nulls);
}

bool
store_delete_key(const KeyName *name)
{
	StoreFrame	frame;
	Datum		values[1] = {UUIDPGetDatum(&name->id)};
	bool		deleted;

	store_enter(&frame, name->schema, STORE_KEYS, RowExclusiveLock);
	store_execute(&frame, &plan_delete_key, values, NULL, SPI_OK_DELETE);
	deleted = SPI_processed > 0;
	store_leave(&frame);
	return deleted;
}
