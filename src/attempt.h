/*-------------------------------------------------------------------------
 *
 * attempt.h
 *	  Attempts at the work of a key: begin, finish, release; under lease
 *	  checkpoint and resume; and a look from outside.
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

#include "store.h"

typedef enum Outcome
{
	OUTCOME_STARTED,
	OUTCOME_REPLAYED,
	OUTCOME_RECOVERED,
	OUTCOME_IN_PROGRESS,
	OUTCOME_MISMATCH,
	OUTCOME_EXPIRED,
	OUTCOME_EXECUTED,			/* attempt_call only */
	OUTCOME_FAILED				/* attempt_call only */
} Outcome;

/* What a begin asks for; lengths of time in microseconds. */
typedef struct AttemptRequest
{
	KeyName		name;
	Fingerprint fingerprint;
	Jsonb	   *request;		/* kept with a claim, may be NULL */
	int64		retention;
	bool		has_sent_at;	/* is it known when the client first sent it? */
	TimestampTz sent_at;
	int64		lease;			/* 0: one transaction */
	bool		wait;			/* wait, and raise what is not to be worked on */
} AttemptRequest;

/* What a begin says.  Fields that the outcome does not tell are 0. */
typedef struct AttemptResult
{
	Outcome		outcome;
	bool		replayed;		/* the response is an earlier attempt's */
	int32		attempt;
	Response	response;
	text	   *checkpoint;
	Jsonb	   *state;
	TimestampTz first_seen_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
	int32		retry_after;	/* seconds */
} AttemptResult;

/* Called once, when the library is loaded. */
extern void attempt_init(void);

/*
 * Begin an attempt.  With wait, waits for the key's lock and returns only
 * started, recovered or replayed; without it, returns every outcome at once.
 * A second begin on an open attempt is IK500 either way.
 */
extern void attempt_begin(const AttemptRequest *request,
						  AttemptResult *result);

/*
 * Finish the open attempt of this transaction, or, where there is none, the
 * attempt of this number under lease.  number 0: not given.
 */
extern void attempt_finish(const KeyName *name, const Response *response,
						   int32 number);

/* IK413 if the response has more than max bytes and max is not 0. */
extern void attempt_check_size(const Response *response, int max);

/*
 * Give the attempt up; false if this transaction has none and no number was
 * given.  For a lease, the error and the time of the next try are kept:
 * retry_after microseconds from now, or by the usual backoff if negative.
 */
extern bool attempt_release(const KeyName *name, int32 number, text *error,
							int64 retry_after);

/*
 * Record a checkpoint of work under lease and renew the lease, by its own
 * length if lease is 0.  Returns when it ends.
 */
extern TimestampTz attempt_checkpoint(const KeyName *name, int32 number,
									  text *checkpoint, Jsonb *state,
									  int64 lease);

/*
 * Take over at most max_keys claims that are stalled or due, each under a
 * new lease; receive is called for each.
 */
typedef void (*ClaimReceiver) (const KeyName *name, const StoredClaim *claim,
							   void *arg);
extern void attempt_resume(Oid schema, text *scope, int32 max_keys,
						   int64 lease, ClaimReceiver receive, void *arg);

/*
 * What a begin would meet now; false if it would start.  sent_at and retention
 * are what such a begin would know.  Takes no lock, waits for nobody.
 */
extern bool attempt_lookup(const AttemptRequest *request,
						   AttemptResult *result);

/* Drop a key and its claim, waiting for the attempt under way. */
extern bool attempt_forget(const KeyName *name);

/* How long to wait after an attempt: base doubled for each one before it. */
extern int64 attempt_backoff(int32 attempt, int64 base, int64 cap);

#endif							/* IDEMPOTENCY_ATTEMPT_H */
