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

#include "rules.h"

typedef struct Attempt
{
	KeyId		id;
	char	   *scope;			/* for messages */
	char	   *key;
	int32		attempt_no;
	bool		under_lease;	/* the claim has the rest */
	bool		row_inserted_at_begin;	/* a batch's */
	bool		delete_expired_first;	/* finish replaces an expired row */
	int32		claim_no;		/* of the claim or counter that finish
								 * deletes, or 0 */
	Fingerprint fingerprint;
	TimestampTz first_seen_at;
	int64		retention;
	SentTime	sent;
	TimestampTz row_expires_at; /* of the row inserted at begin */
	SubTransactionId begin_subid;
	SubTransactionId end_subid; /* InvalidSubTransactionId: open */
	uint64		end_seq;		/* position among all ends in this transaction */
	struct Attempt *previous;	/* the attempt before on the same key, or NULL */
} Attempt;

/* Called once, when the library is loaded. */
extern void attempt_list_init(void);

/* Find the open attempt on a key, or NULL. */
extern Attempt *attempt_list_find_open(const KeyId *id);

/* List a new attempt, begun now; the caller fills in the rest. */
extern Attempt *attempt_list_add(const KeyName *name);

/* Mark an attempt as finished or released, now. */
extern void attempt_list_mark_ended(Attempt *attempt);

/*
 * How many attempts have been ended so far, and was the key's newest attempt
 * ended after that many?
 */
extern uint64 attempt_list_current_end_seq(void);
extern bool attempt_list_ended_since(const KeyId *id, uint64 end_seq);

#endif							/* IDEMPOTENCY_ATTEMPT_LIST_H */
