/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The tables, and the only room that reads or writes them.
 *
 * A key's row and its claim are read without SQL, whatever else their tables
 * have; they are written without SQL where that runs no user code, and
 * otherwise by a statement that runs as the tables' owner.  Every function
 * fails with 0A000 where a table is not of the shape that the promise rests
 * on.  What is returned is palloc'd in the caller's memory context.
 *
 * Who may write a key is not decided here: the caller holds the key's lock.
 * Who writes to a claim also names the attempt number that it replaces; the
 * statement compares it once more.
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
	bool		failed;			/* response is a remembered error */
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
	int32		attempt_no;
	TimestampTz first_seen_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
	bool		shortened;		/* finish gave a shorter retention than begin */
	Response	response;
} StoredKey;

/*
 * A key under lease, or only its counter (reset_at is set).  Lengths of time
 * are in microseconds; a time of 0 is null.  request and state may be toasted:
 * the function that returns them detoasts them.
 */
typedef struct StoredClaim
{
	bool		has_name;		/* a forgotten claim has no scope and key */
	Fingerprint fingerprint;
	Jsonb	   *request;
	int32		attempt_no;
	text	   *checkpoint;
	Jsonb	   *state;
	text	   *last_error;
	int32		max_attempts;
	int64		retention;
	int64		lease;
	TimestampTz first_seen_at;
	TimestampTz claimed_at;
	TimestampTz lease_until;
	TimestampTz retry_at;
	TimestampTz parked_at;
	TimestampTz reset_at;
} StoredClaim;

/* Another transaction, not ended yet, that is writing a key's row. */
typedef struct Inserter
{
	TransactionId xid;			/* InvalidTransactionId: there is none */
	uint32		token;			/* while its statement has not decided yet */
} Inserter;

/*
 * All that is stored of a key, and when it was read.  Judge expiry by read_at
 * rather than by a later clock.  If the key has not expired as of read_at, its
 * claim is not read and has_claim is false.
 *
 * inserter is set if another transaction has written the key's row and not
 * committed.  It holds the key's lock, unless it is that of a large batch.
 *
 * other_name: a row of this id has another scope or key.  An id is a hash, so
 * that does not happen by chance, but a client that chooses the time inside a
 * key can try for it.
 */
typedef struct Stored
{
	TimestampTz read_at;
	Inserter	inserter;
	bool		other_name;
	bool		has_key;		/* expired ones included */
	bool		has_claim;		/* counters included */
	StoredKey	key;
	StoredClaim claim;
	TransactionId claim_writer; /* of the claim's last version */
} Stored;

/* A correction of idempotent_resolve: what it did, and what was there before. */
typedef struct Correction
{
	const char *what;
	text	   *reason;
	int32		attempt_no;		/* 0: there was none */
	text	   *checkpoint;
	Jsonb	   *state;
	text	   *error;
	Response	response;
	TimestampTz finished_at;	/* 0: it was not finished */
} Correction;

/* Called once, when the library is loaded. */
extern void store_init(void);

/* 0A000 unless both tables are of the shape that the promise rests on. */
extern void store_check_tables(Oid schema);

/*
 * Read a key and its claim as they are now; one that is just being finished is
 * one of the two, never neither.  have_key_lock: no other session can change
 * them meanwhile.
 */
extern void store_read(const KeyName *name, bool have_key_lock, Stored *stored);

/* Wait until the write has been committed or taken back. */
extern void store_wait_for(const Inserter *inserter);

/* Does the transaction's own snapshot show what this one wrote? */
extern bool store_is_visible(TransactionId writer);

/*
 * Insert a finished key.  If delete_expired_first, a row of the key that has
 * expired is removed first, which waits for a transaction that has locked it.
 * Fails with 40001 if another row is there: the key's lock keeps out all writers
 * but those that do not use this extension.
 */
extern void store_insert_key(const KeyName *name, const StoredKey *key,
							 bool delete_expired_first);

/*
 * The same for many keys: between store_begin_many and store_end_many the
 * rows of store_insert_one_of_many are inserted by one command.
 */
extern void store_insert_one_of_many(const KeyName *name, const StoredKey *key,
									 bool delete_expired_first);
extern void store_end_many(void);

/* Replace a finished key, whose attempt number stays. */
extern void store_update_key(const KeyName *name, const StoredKey *key);

/* Delete a finished key, expired or not; false if there was none. */
extern bool store_delete_key(const KeyName *name);

/*
 * Delete at most max_keys keys that have expired, and return how many.  Passes
 * over keys that other transactions have locked or have an attempt on; never
 * waits.
 */
extern int64 store_prune(Oid schema, int64 max_keys);

/*
 * Delete the counters that no worker can still depend on, and corrections
 * older than corrections_retention microseconds unless that is 0.  Passes over
 * rows that other transactions have locked or whose keys have an attempt.
 */
extern void store_prune_counters(Oid schema);
extern void store_prune_corrections(Oid schema, int64 corrections_retention);

/*
 * Claims: insert; replace the one whose attempt number is replaced_no; delete
 * the one of this number, false if there is none.
 */
extern void store_insert_claim(const KeyName *name, const StoredClaim *claim);
extern void store_update_claim(const KeyName *name, const StoredClaim *claim,
							   int32 replaced_no);
extern bool store_delete_claim(const KeyName *name, int32 attempt_no);

/*
 * The names of at most max_keys claims that may be due for another try,
 * longest due first; of one scope unless that is NULL.  Passes over the first
 * skip of them.  Whether a claim is due is decided by rules.h, once its key's
 * lock is held; this only spares a look at those that cannot be.
 */
extern int	store_find_due(Oid schema, text *scope, int skip, int max_keys,
						   KeyName **names);

/* The names of at most max_keys keys, claims and counters of a scope. */
extern int	store_find_scope(Oid schema, text *scope, int max_keys,
							 KeyName **names);

/* Corrections: insert one of a key; delete those of a key, or of a scope. */
extern void store_insert_correction(const KeyName *name,
									const Correction *correction);
extern bool store_delete_corrections(const KeyName *name);
extern void store_delete_scope_corrections(Oid schema, text *scope);

/*
 * Compare another service's list with what is stored, as idempotent_reconcile
 * describes; receive is called with the columns of each row of its result.
 * until may be infinite, scope NULL.
 */
#define RECONCILE_COLUMNS 8
typedef void (*RowReceiver) (Datum *values, bool *isnull, void *arg);
extern void store_reconcile(Oid schema, Jsonb *theirs, text *step,
							TimestampTz since, TimestampTz until, text *scope,
							RowReceiver receive, void *arg);

#endif							/* IDEMPOTENCY_STORE_H */
