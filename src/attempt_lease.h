/*-------------------------------------------------------------------------
 *
 * attempt_lease.h
 *	  Attempts under lease: claim, takeover, finish, release.  Only files of
 *	  the attempt room include this.
 *
 * The attempt's number is the fencing token.  Whoever writes to a claim holds
 * the key's lock to the end of the transaction and has read the claim after
 * that, so that the number it compared is still the claim's when it commits.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_LEASE_H
#define IDEMPOTENCY_ATTEMPT_LEASE_H

#include "attempt.h"

/* Write a first claim, or take over one whose lease has ended. */
extern void lease_claim(const AttemptRequest *request, const Stored *stored,
						TimestampTz now, AttemptResult *result);
extern void lease_take_over(const AttemptRequest *request,
							const StoredClaim *claim, TimestampTz now,
							AttemptResult *result);

/* As attempt_finish and attempt_release, for the attempt of this number. */
extern void lease_finish(const KeyName *name, const Response *response,
						 int32 number);
extern void lease_release(const KeyName *name, int32 number, text *error,
						  int64 retry_after);

/* The same for an attempt that took the claim over in this transaction. */
extern void lease_release_taken(const KeyName *name, int32 number,
								text *error, int64 retry_after);

/*
 * Was a request sent so long ago that its key may have been pruned?  retention
 * in microseconds.
 */
extern bool attempt_is_too_late(TimestampTz sent_at, int64 retention,
								TimestampTz now);

/* start + span, or IK400 if that is no timestamp; what names the span. */
extern TimestampTz time_after(TimestampTz start, int64 span, const char *what);

#endif							/* IDEMPOTENCY_ATTEMPT_LEASE_H */
