/*-------------------------------------------------------------------------
 *
 * rules.h
 *	  The rules: what begin returns, when a key expires, who may take a claim.
 *
 * Pure functions of what is stored, what is requested and the time: no locks,
 * no SQL, no settings.  test/model/lease.pml states the same rules.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_RULES_H
#define IDEMPOTENCY_RULES_H

#include "store.h"

/* The longest lease, and the longest time until a released claim is due. */
#define RULES_MAX_LEASE (30 * USECS_PER_DAY)

/* How far first_sent may be ahead of our clock. */
#define RULES_MAX_CLOCK_SKEW USECS_PER_MINUTE

typedef enum Outcome
{
	OUTCOME_STARTED,
	OUTCOME_REPLAYED,
	OUTCOME_RECOVERED,
	OUTCOME_IN_PROGRESS,
	OUTCOME_MISMATCH,
	OUTCOME_EXPIRED,
	OUTCOME_PARKED,
	OUTCOME_EXECUTED,			/* attempt_call only */
	OUTCOME_FAILED				/* attempt_call only */
} Outcome;

/* When a request was first sent, as far as that is known. */
typedef enum SentBy
{
	SENT_UNKNOWN,
	SENT_BY_CALLER,				/* first_sent was given */
	SENT_BY_KEY					/* a guess: the time inside the key */
} SentBy;

typedef struct SentTime
{
	SentBy		by;
	TimestampTz at;
} SentTime;

/* What the rules need to know of a begin. */
typedef struct RuleRequest
{
	const Fingerprint *fingerprint;
	SentTime	sent;
	int64		retention;
} RuleRequest;

/* start + span microseconds, or the end of time. */
extern TimestampTz rules_time_after(TimestampTz start, int64 span);

/*
 * When an answer expires that is finished now: retention after now, or after
 * the time when its request was sent, where that is known and later.  Rounded
 * up to a multiple of the largest power of two of microseconds that is not
 * above retention / 256, so that keys that are finished at about the same time
 * share the value, and the BRIN index seldom changes.
 */
extern TimestampTz rules_expires_at(TimestampTz now, SentTime sent,
									int64 retention);

/* Has an attempt been given the key, or only its number kept? */
extern bool rules_is_claimed(const Stored *stored);

extern bool rules_key_is_expired(const StoredKey *key, TimestampTz now);
extern bool rules_lease_is_live(const StoredClaim *claim, TimestampTz now);

/* Did release or park end the claim's attempt before its lease was over? */
extern bool rules_attempt_is_ended(const StoredClaim *claim);

/* May resume hand the claim out? */
extern bool rules_is_due(const StoredClaim *claim, TimestampTz now);

/* In how many seconds may a client ask again?  At least 1. */
extern int32 rules_retry_after(const Stored *stored, TimestampTz now);

/* The attempt number after which a claim whose first number this is is parked. */
extern int32 rules_last_attempt_no(int32 first_no, int max_attempts);

/*
 * What begin returns.  alone: the key's lock is held, and no other
 * transaction is writing the key's row; otherwise the key is in progress.
 */
extern Outcome rules_outcome(const RuleRequest *request, const Stored *stored,
							 bool alone, TimestampTz now);

/* How long to wait after an attempt: base doubled for each one before it. */
extern int64 rules_backoff(int32 attempt_no, int64 base, int64 cap);

#endif							/* IDEMPOTENCY_RULES_H */
