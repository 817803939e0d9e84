/*-------------------------------------------------------------------------
 *
 * attempt_list.h
 *	  The attempts of the current transaction: savepoints, commit guard.
 *	  Only files of the attempt room include this.
 *
 * An attempt is listed from its begin to the end of the transaction.  A
 * ROLLBACK TO over its begin takes it off the list; one over its end (finish
 * or release) makes it open again.  A transaction that would commit, or be
 * prepared, with an open attempt that is not under lease is failed (IK500).
 * The list lives and dies with the transaction: nothing of it survives an
 * error, a DROP EXTENSION or a change of role.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_LIST_H
#define IDEMPOTENCY_ATTEMPT_LIST_H

#include "store.h"

typedef struct Attempt
{
	KeyId		id;
	char	   *scope;			/* for messages */
	char	   *key;
	int32		number;
	bool		leased;			/* the claim tells the rest */
	bool		locked;			/* the key's lock was taken for it */
	bool		inserted;		/* the key's row was inserted at begin */
	bool		took_claim;		/* begun on a claim whose lease had ended */
	bool		replaces_expired;	/* begun on a key that had expired */
	Fingerprint fingerprint;
	TimestampTz first_seen_at;
	TimestampTz expires_at;
	SubTransactionId begun_in;
	SubTransactionId ended_in;	/* InvalidSubTransactionId: open */
	uint64		end;			/* which of the ends that was */
} Attempt;

/* Called once, when the library is loaded. */
extern void attempt_list_init(void);

/* The open attempt on a key, or NULL. */
extern Attempt *attempt_list_open(const KeyId *id);

/* List a new attempt, begun now; the caller fills in the rest. */
extern Attempt *attempt_list_add(const KeyName *name);

/* The attempt has been finished or released, now. */
extern void attempt_list_end(Attempt *attempt);

/*
 * How many attempts have been ended so far, and was the key's newest one ended
 * after so many?
 */
extern uint64 attempt_list_ends(void);
extern bool attempt_list_ended_after(const KeyId *id, uint64 ends);

/* Was it begun in the current subtransaction (or in one merged into it)? */
extern bool attempt_list_begun_here(const Attempt *attempt);

#endif							/* IDEMPOTENCY_ATTEMPT_LIST_H */
