/*-------------------------------------------------------------------------
 *
 * attempt_resolve.h
 *	  Settle from outside what became of a key, and find out what has to be settled.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_RESOLVE_H
#define IDEMPOTENCY_ATTEMPT_RESOLVE_H

#include "attempt.h"

/* What a resolve says. */
typedef struct Resolution
{
	KeyName		name;
	text	   *reason;
	Response	response;
	int64		retention;		/* microseconds; 0: the claim's, or the
								 * setting's */
	int32		attempt_no;		/* what the caller saw; 0: not given */
	bool		correct;		/* may a finished key's answer be replaced? */
} Resolution;

/*
 * Store the answer, and a correction that keeps what was there before.  Returns
 * "settled", "corrected" or "recorded".  Waits for a transaction that has an
 * attempt on the key.  Fails with IK409 if the lease is live or if the key is
 * finished and correct is not set, and with IK410 if the attempt number is not
 * the one that the caller saw.
 */
extern const char *attempt_resolve(const Resolution *resolution);

/*
 * Compare another service's list of derived keys with what is stored; receive
 * is called for each row of what does not agree.  IK400 unless theirs is an
 * array of objects with key and ok.
 */
extern void attempt_reconcile(Oid schema, Jsonb *theirs, text *step,
							  TimestampTz since, TimestampTz until,
							  text *scope, RowReceiver receive, void *arg);

#endif							/* IDEMPOTENCY_ATTEMPT_RESOLVE_H */
