/*-------------------------------------------------------------------------
 *
 * attempt_many.h
 *	  The attempts of a batch of keys in one transaction: begin, finish.
 *
 * For consumers of queues: a batch of message ids of which some have been
 * seen.  There is no response to wait for, so begin inserts the rows and
 * finish has nothing left to write; the guard sees to it that finish is
 * called.
 *
 * Up to MANY_LOCKED keys are locked one by one in the order of their ids,
 * and all is as if each had been begun alone.  In a larger batch, which the
 * lock table may not hold, only those keys are locked that somebody else is
 * at work on, to wait for them; others are kept apart by the rows themselves:
 * another batch waits for them in the same order, and a single attempt waits for
 * the batch's end when it reads the key.  (Where the table cannot be read past
 * SQL, it begins, and gets a 40001 at its finish.)
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_MANY_H
#define IDEMPOTENCY_ATTEMPT_MANY_H

#include "attempt.h"

#define MANY_LOCKED 200

/* Sort names by id and drop duplicates, for begin; returns how many are left. */
extern int	attempt_many_arrange(KeyName *names, int n);

/*
 * Begin an attempt on each key that is new; started[i] tells which.  sent_at,
 * if not NULL, tells when each was first sent, infinite where that is not
 * known: what is new and comes too late is IK412.
 */
extern void attempt_begin_many(const KeyName *names, int n,
							   const TimestampTz *sent_at, int64 retention,
							   bool *started);

/*
 * Finish the open attempts on these keys, each of which must have one; they may
 * be in any order and with duplicates.  Returns how many were finished.
 */
extern int	attempt_finish_many(const KeyName *names, int n);

#endif							/* IDEMPOTENCY_ATTEMPT_MANY_H */
