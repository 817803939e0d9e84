/*-------------------------------------------------------------------------
 *
 * attempt_lease.h
 *	  Attempts under lease: claim, checkpoint, takeover, finish, release, park.
 *
 * Only files of the attempt room, and the front door, include this.
 *
 * The attempt's number is the fencing token.  Whoever writes to a claim holds
 * the key's lock to the end of the transaction and has read the claim after
 * that, so that the number it compared is still the claim's when it commits.
 * The statement that writes compares it once more.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_LEASE_H
#define IDEMPOTENCY_ATTEMPT_LEASE_H

#include "attempt_base.h"

/* How an attempt is given up. */
typedef struct ReleaseTerms
{
	text	   *error;			/* kept with the claim, may be NULL */
	int64		retry_after;	/* microseconds; negative: the usual backoff */
	bool		reset;			/* keep the attempt number only */
} ReleaseTerms;

/*
 * Claim a key of which no claim is stored, or only a counter; take over a
 * claim that is due.
 */
extern void lease_claim(const AttemptRequest *request, const Stored *stored,
						TimestampTz now, AttemptResult *result);
extern void lease_take_over(const AttemptRequest *request,
							const StoredClaim *claim, TimestampTz now,
							AttemptResult *result);

/*
 * Delete the claim, which must still be this attempt's: a second line of
 * defence beside the lock.  A counter may have been pruned meanwhile.
 */
extern void lease_delete_claim(const KeyName *name, int32 claim_no);

/*
 * Finish or release the attempt of this number.  retention: what finish was
 * given, or 0.
 */
extern void lease_finish(const KeyName *name, const Response *response,
						 int32 attempt_no, int64 retention);
extern void lease_release(const KeyName *name, int32 attempt_no,
						  const ReleaseTerms *terms);

/*
 * Release an attempt of this transaction that goes on from the claim numbered
 * claim_no without a lease of its own.  A counter stays as it is.
 */
extern void lease_release_recovered(const KeyName *name, int32 claim_no,
									int32 attempt_no,
									const ReleaseTerms *terms);

/*
 * Record a checkpoint of work under lease (NULL: keep checkpoint and state)
 * and renew the lease, by its own length if lease is 0.  Returns when it ends.
 */
extern TimestampTz lease_checkpoint(const KeyName *name, int32 attempt_no,
									text *checkpoint, Jsonb *state,
									int64 lease);

/*
 * End the attempt of this number.  Nothing hands the claim out again until an
 * operator resolves or retries it.
 */
extern void lease_park(const KeyName *name, int32 attempt_no, text *error);

/* Hand a claim out, with all that its worker needs. */
typedef void (*ClaimReceiver) (const KeyName *name, const StoredClaim *claim,
							   void *arg);

/*
 * Take over at most max_keys claims that are due, each under a new lease;
 * receive is called for each.
 */
extern void lease_resume(Oid schema, text *scope, int32 max_keys,
						 int64 lease, ClaimReceiver receive, void *arg);

/* Take over this claim, whatever its state but live. */
extern void lease_retry(const KeyName *name, int64 lease,
						ClaimReceiver receive, void *arg);

/* IK409, with what holds the key and until when. */
pg_noreturn extern void lease_report_in_progress(const Stored *stored,
												 TimestampTz now);

/* IK410, with the reason. */
pg_noreturn extern void lease_report_overtaken(int32 attempt_no,
											   const char *reason);

#endif							/* IDEMPOTENCY_ATTEMPT_LEASE_H */
