/*-------------------------------------------------------------------------
 *
 * store_rows.h
 *	  The columns of our tables, each in one place, and the one reader and the
 *	  one writer of each row.  Only files of the store room include this.
 *
 * To add a column, append it to its table's list here and to the install
 * script; then read and write it in store_rows.c.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_ROWS_H
#define IDEMPOTENCY_STORE_ROWS_H

#include "catalog/pg_type_d.h"

#include "store.h"

/* number, name, type, may it be null? */
#define KEY_COLUMN_LIST(COLUMN) \
	COLUMN(KEY_ID, "id", UUIDOID, false) \
	COLUMN(KEY_SCOPE, "scope", TEXTOID, false) \
	COLUMN(KEY_KEY, "key", TEXTOID, false) \
	COLUMN(KEY_FINGERPRINT, "fingerprint", BYTEAOID, true) \
	COLUMN(KEY_ATTEMPT, "attempt", INT4OID, false) \
	COLUMN(KEY_STATUS, "status", INT4OID, true) \
	COLUMN(KEY_HEADERS, "headers", JSONBOID, true) \
	COLUMN(KEY_RESPONSE, "response", JSONBOID, true) \
	COLUMN(KEY_BODY, "body", BYTEAOID, true) \
	COLUMN(KEY_FIRST_SEEN_AT, "first_seen_at", TIMESTAMPTZOID, false) \
	COLUMN(KEY_FINISHED_AT, "finished_at", TIMESTAMPTZOID, false) \
	COLUMN(KEY_EXPIRES_AT, "expires_at", TIMESTAMPTZOID, false) \
	COLUMN(KEY_FAILED, "failed", BOOLOID, true) \
	COLUMN(KEY_SHORTENED, "shortened", BOOLOID, true)

#define CLAIM_COLUMN_LIST(COLUMN) \
	COLUMN(CLAIM_ID, "id", UUIDOID, false) \
	COLUMN(CLAIM_SCOPE, "scope", TEXTOID, true) \
	COLUMN(CLAIM_KEY, "key", TEXTOID, true) \
	COLUMN(CLAIM_FINGERPRINT, "fingerprint", BYTEAOID, true) \
	COLUMN(CLAIM_REQUEST, "request", JSONBOID, true) \
	COLUMN(CLAIM_ATTEMPT, "attempt", INT4OID, false) \
	COLUMN(CLAIM_CHECKPOINT, "checkpoint", TEXTOID, true) \
	COLUMN(CLAIM_STATE, "state", JSONBOID, true) \
	COLUMN(CLAIM_LAST_ERROR, "last_error", TEXTOID, true) \
	COLUMN(CLAIM_MAX_ATTEMPTS, "max_attempts", INT4OID, false) \
	COLUMN(CLAIM_RETENTION, "retention", INTERVALOID, false) \
	COLUMN(CLAIM_LEASE, "lease", INTERVALOID, false) \
	COLUMN(CLAIM_FIRST_SEEN_AT, "first_seen_at", TIMESTAMPTZOID, false) \
	COLUMN(CLAIM_CLAIMED_AT, "claimed_at", TIMESTAMPTZOID, false) \
	COLUMN(CLAIM_LEASE_UNTIL, "lease_until", TIMESTAMPTZOID, false) \
	COLUMN(CLAIM_RETRY_AT, "retry_at", TIMESTAMPTZOID, true) \
	COLUMN(CLAIM_PARKED_AT, "parked_at", TIMESTAMPTZOID, true) \
	COLUMN(CLAIM_RESET_AT, "reset_at", TIMESTAMPTZOID, true)

#define COLUMN_NUMBER(number, name, type, nullable) number,
enum
{
	KEY_COLUMN_LIST(COLUMN_NUMBER) KEY_COLUMNS
};
enum
{
	CLAIM_COLUMN_LIST(COLUMN_NUMBER) CLAIM_COLUMNS
};

#define STORE_MAX_COLUMNS 20

StaticAssertDecl((int) KEY_COLUMNS <= STORE_MAX_COLUMNS &&
				 (int) CLAIM_COLUMNS <= STORE_MAX_COLUMNS,
				 "a table of ours has more columns than a row has room for");
StaticAssertDecl((int) KEY_ID == 0 && (int) CLAIM_ID == 0,
				 "statements take the id for the first column");

typedef struct StoreColumn
{
	const char *name;
	Oid			type;
	bool		nullable;
} StoreColumn;

typedef enum StoreTableNo
{
	STORE_KEYS,
	STORE_CLAIMS,
	STORE_CORRECTIONS			/* written through SQL alone */
} StoreTableNo;

#define STORE_CHECKED_TABLES (STORE_CLAIMS + 1)

/* What we expect of a table. */
typedef struct StoreTableDef
{
	const char *name;
	int			ncolumns;		/* 0: columns are not looked at */
	const StoreColumn *columns;
} StoreTableDef;

extern const StoreTableDef store_tables[STORE_CORRECTIONS + 1];

/* The values of a row, by our column numbers. */
typedef struct StoreRow
{
	Datum		values[STORE_MAX_COLUMNS];
	bool		isnull[STORE_MAX_COLUMNS];
} StoreRow;

/*
 * Read a row, whatever it was fetched by, and form one.  What the readers
 * return is a copy in the current memory context.  same_name: are scope and
 * key those of the name?  A row without them matches any name.
 */
extern void store_key_from_row(const StoreRow *row, StoredKey *key);
extern void store_claim_from_row(const StoreRow *row, StoredClaim *claim);
extern bool store_row_has_name(const StoreRow *row, const KeyName *name);
extern void store_row_from_key(const KeyName *name, const StoredKey *key,
							   StoreRow *row);
extern void store_row_from_claim(const KeyName *name, const StoredClaim *claim,
								 StoreRow *row);

#endif							/* IDEMPOTENCY_STORE_ROWS_H */
