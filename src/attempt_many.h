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
 * Each key is locked, read and, if it is new, inserted, one after the other in
 * the order of their ids, so two batches wait for each other in one order only.
 * Up to MANY_LOCKED keys keep their locks.  The lock table may not hold those of
 * a larger batch, which gives each lock back as soon as the key's row is there:
 * a session that takes the lock after that sees the row and waits for the
 * batch's transaction to end.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_MANY_H
#define IDEMPOTENCY_ATTEMPT_MANY_H

#include "attempt.h"

#define MANY_LOCKED 200

/*
 * Begin an attempt on each key that is new, and set its started[i]; of equal
 * keys, the first one's.  Fails with IK412 if a key comes too late, IK409 or
 * IK423 if it has a claim, and IK422 if its row has another name; the error
 * names the key.
 */
extern void attempt_begin_many(const KeyName *names, int n, int64 retention,
							   bool *started);

/*
 * Finish the open attempts on these keys, each of which must have one; they may
 * be in any order and with duplicates.  Returns how many were finished.
 */
extern int	attempt_finish_many(const KeyName *names, int n);

#endif							/* IDEMPOTENCY_ATTEMPT_MANY_H */
