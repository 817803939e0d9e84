/*-------------------------------------------------------------------------
 *
 * attempt_base.h
 *	  What the files of the attempt room share.
 *
 * Only files of that room, and the front door, include this.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_BASE_H
#define IDEMPOTENCY_ATTEMPT_BASE_H

#include "compat.h"
#include "rules.h"

typedef enum BeginMode
{
	BEGIN_WAIT,					/* wait, and raise what must not be worked on */
	BEGIN_TRY					/* never wait, return every outcome */
} BeginMode;

/* What a begin asks for; lengths of time in microseconds. */
typedef struct AttemptRequest
{
	KeyName		name;
	Fingerprint fingerprint;
	Jsonb	   *request;		/* kept with a claim, may be NULL */
	int64		retention;
	SentTime	sent;
	int64		lease;			/* 0: one transaction */
	BeginMode	mode;
} AttemptRequest;

/* What a begin returns.  Fields that do not apply to the outcome are 0. */
typedef struct AttemptResult
{
	Outcome		outcome;
	bool		replayed;		/* the response is an earlier attempt's */
	int32		attempt_no;
	Response	response;
	text	   *checkpoint;
	Jsonb	   *state;
	TimestampTz first_seen_at;
	TimestampTz finished_at;
	TimestampTz expires_at;
	int32		retry_after;	/* seconds */
	text	   *error;
} AttemptResult;

/*
 * The time at which a request with this key was first sent, by the key's own
 * time if the setting key_time says so.
 */
extern SentTime attempt_sent_by_key(const text *key);

/* Take the key's lock, waiting for it, and count a wait. */
extern void attempt_lock(const KeyId *id);

/*
 * Read what is stored of a key whose lock is ours.  A large batch inserts its
 * rows without keeping the keys' locks: with BEGIN_WAIT, wait for its end.
 */
extern void attempt_read_after_writers(const KeyName *name, BeginMode mode,
									   Stored *stored);

/*
 * Lock a key that is to be changed, and read it.  A row of this id under
 * another name is IK422.
 */
extern void attempt_lock_and_read(const KeyName *name, Stored *stored);

/*
 * Does the transaction's snapshot show the work that the claim's last
 * checkpoint committed?  In READ COMMITTED the next statement's snapshot will.
 */
extern bool attempt_sees_work_of(const Stored *stored);

/* 40001 if it does not. */
extern void attempt_check_sees_work_of(const Stored *stored);

/* Copy what a claim says into a result; request and state out of TOAST. */
extern void attempt_claim_to_result(const StoredClaim *claim,
									AttemptResult *result);
extern Jsonb *attempt_detoast(Jsonb *value);

/* IK400 if a key of which nothing is stored is too long. */
extern void attempt_check_key_length(const KeyName *name);

/* IK413 if the response is over the setting max_response_size. */
extern void attempt_check_size(const Response *response);

/* IK422: another request, or another name, has the key. */
pg_noreturn extern void attempt_report_mismatch(void);

#endif							/* IDEMPOTENCY_ATTEMPT_BASE_H */
