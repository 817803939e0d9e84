/*-------------------------------------------------------------------------
 *
 * attempt.h
 *	  Attempts at the work of a key: begin, finish, release; a look from outside; removal.
 *
 * The one room that knows about savepoints and commit.  Callers have checked
 * their arguments and that they may write.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_H
#define IDEMPOTENCY_ATTEMPT_H

#include "attempt_base.h"
#include "attempt_lease.h"

/* Called once, when the library is loaded. */
extern void attempt_init(void);

/*
 * Begin an attempt.  With BEGIN_WAIT, waits for the key's lock and returns
 * only started, recovered or replayed; with BEGIN_TRY, returns every outcome
 * at once.  A second begin on an open attempt is IK500 either way.
 */
extern void attempt_begin(const AttemptRequest *request,
						  AttemptResult *result);

/*
 * Finish the open attempt of this transaction, or, where there is none, the
 * attempt of this number under lease.  attempt_no 0: not given.  retention
 * replaces that of begin unless it is 0.
 */
extern void attempt_finish(const KeyName *name, const Response *response,
						   int32 attempt_no, int64 retention);

/*
 * Give the attempt up; false if this transaction has none and no number was
 * given.  The key's lock stays to the end of the transaction, which may still
 * write.
 */
extern bool attempt_release(const KeyName *name, int32 attempt_no,
							const ReleaseTerms *terms);

/*
 * Find what a begin would meet now; false if it would start.  Of a claim also
 * its checkpoint, state and error.  Takes no lock and never waits.
 */
extern bool attempt_lookup(const AttemptRequest *request,
						   AttemptResult *result);

/*
 * Drop a key, its claim and its corrections, waiting for the attempt under
 * way; false if there was nothing.  Of a claim the counter stays.
 */
extern bool attempt_forget(const KeyName *name);

/* The same for at most max_keys keys and claims of a scope; how many. */
extern int64 attempt_forget_scope(Oid schema, text *scope, int32 max_keys);

/* Remove at most max_keys expired keys, and return how many.  Never waits. */
extern int64 attempt_prune(Oid schema, int32 max_keys);

#endif							/* IDEMPOTENCY_ATTEMPT_H */
