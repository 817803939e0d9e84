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

/* How the tables know a key. */
typedef struct KeyName
{
	Oid			schema;			/* of the extension */
	text	   *scope;
	text	   *key;
	KeyId		id;
} KeyName;

/* What a finished attempt answered; NULL where it gave nothing. */
typedef struct Response
{
	bool		failed;			/* response tells a remembered error */
	bool		has_status;
	int32		status;
	Jsonb	   *headers;
	Jsonb	   *response;
	bytea	   *body;
} Response;

/* A finished key. */
typedef struct StoredKey
{
	Fingerprint fingerprint;
	int32		attempt;
	TimestampTz first_seen_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
	Response	response;
} StoredKey;

/* A key under lease.  Lengths of time are in microseconds. */
typedef struct StoredClaim
{
	Fingerprint fingerprint;
	Jsonb	   *request;		/* only written, and read by store_read_due */
	int32		attempt;
	text	   *checkpoint;
	Jsonb	   *state;
	int64		retention;
	int64		lease;
	TimestampTz first_seen_at;
	TimestampTz claimed_at;
	TimestampTz lease_until;
	bool		released;		/* the attempt gave up: retry_at is set */
} StoredClaim;

/* Another transaction, not ended yet, that has inserted a key's row. */
typedef struct Inserter
{
	TransactionId xid;			/* InvalidTransactionId: there is none */
	uint32		token;			/* while its statement has not decided yet */
} Inserter;

/*
 * All that is stored of a key.  read_at is the clock's at that moment; with a
 * key that has not expired by then no claim is told.
 *
 * inserter tells of a row that is written but not committed.  Its writer
 * holds the key's lock as a rule; the transaction of a large batch does not.
 * It is not told where the table has to be read through SQL.
 */
typedef struct Stored
{
	TimestampTz read_at;
	Inserter	inserter;
	bool		has_key;		/* expired ones included */
	bool		has_claim;
	StoredKey	key;
	StoredClaim claim;
} Stored;

/*
 * Read a key and its claim as they are now; one that is just being finished is
 * one of the two, never neither.  locked: the caller holds the key's lock, so
 * nobody changes them meanwhile.
 */
extern void store_read(const KeyName *name, bool locked, Stored *stored);

/* Wait until the insert has been committed or taken back. */
extern void store_wait_for(const Inserter *inserter);

/*
 * Insert a finished key.  If replaces_expired, a row of the key that has
 * expired is removed first.  A row that should not be there is a 40001.
 */
extern void store_insert_key(const KeyName *name, const StoredKey *key,
							 bool replaces_expired);

/*
 * Insert empty rows for the keys of one scope, given in the order of their
 * ids, that have none which is honoured at first_seen_at; inserted[i] tells
 * which.  Waits for the transaction that is inserting the same key.  Two such
 * calls wait for each other in one order only.
 */
extern void store_insert_many(const KeyName *names, int n,
							  TimestampTz first_seen_at, TimestampTz expires_at,
							  bool *inserted);

/* The first of these keys that has a claim, or -1. */
extern int	store_find_claim(const KeyName *names, int n);

/* False if there is no claim, committed or not, of any key. */
extern bool store_may_have_claims(Oid schema);

/* Delete a finished key, expired or not; false if there was none. */
extern bool store_delete_key(const KeyName *name);

/*
 * Delete at most max_keys keys that have expired, and tell how many.  Passes
 * over keys that others lock or are at work on; waits for nobody.
 */
extern int64 store_prune(Oid schema, int64 max_keys);

/*
 * Claims: insert; a new attempt and its lease (and fingerprint and request,
 * where there is none yet); a checkpoint; a release.
 */
extern void store_insert_claim(const KeyName *name, const StoredClaim *claim);
extern void store_take_claim(const KeyName *name, const StoredClaim *claim);
extern void store_checkpoint_claim(const KeyName *name,
								   const StoredClaim *claim);
extern void store_release_claim(const KeyName *name, text *error,
								TimestampTz lease_until, TimestampTz retry_at);

/* Delete a claim; false if there was none. */
extern bool store_delete_claim(const KeyName *name);

/*
 * The names of at most max_keys claims that are stalled or due for another
 * try, longest due first; of one scope unless that is NULL.  Passes over the
 * first skip of them.
 */
extern int	store_find_due(Oid schema, text *scope, int skip, int max_keys,
						   KeyName **names);

/* Read a claim with its request; false if it is gone or no longer due. */
extern bool store_read_due(const KeyName *name, StoredClaim *claim);

#endif							/* IDEMPOTENCY_STORE_H */
