/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The tables, and the only room that runs SQL on them.
 *
 * Everything runs as the tables' owner, whatever the caller may do, with
 * qualified names and saved plans, and reads with a snapshot newer than the
 * locks the caller holds.  What is returned is palloc'd in the caller's
 * memory context and not toasted.  Who may write a key is not decided here:
 * the caller holds the key's lock.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_H
#define IDEMPOTENCY_STORE_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "fingerprint.h"
#include "keylock.h"

/* What a finished attempt answered; NULL where it gave nothing. */
typedef struct Response
{
	bool		has_status;
	int32		status;
	Jsonb	   *headers;
	Jsonb	   *response;
	bytea	   *body;
} Response;

/* A finished key, without its name. */
typedef struct StoredKey
{
	Fingerprint fingerprint;
	int32		attempt;
	TimestampTz first_seen_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
	Response	response;
} StoredKey;

/* Read a finished key, expired or not; false if there is none. */
extern bool store_read_key(Oid schema, const KeyId *id, StoredKey *stored);

/*
 * Insert a finished key.  If replaces_expired, a row of the key that has
 * expired is removed first.  A row that should not be there is a 40001.
 */
extern void store_insert_key(Oid schema, const KeyId *id,
							 text *scope, text *key,
							 const StoredKey *stored, bool replaces_expired);

/* Delete a finished key, expired or not; false if there was none. */
extern bool store_delete_key(Oid schema, const KeyId *id);

/*
 * Delete at most max_keys keys that have expired, and tell how many.  Passes
 * over keys that others lock or are at work on; waits for nobody.
 */
extern int64 store_prune(Oid schema, int64 max_keys);

#endif							/* IDEMPOTENCY_STORE_H */
