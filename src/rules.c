/*-------------------------------------------------------------------------
 *
 * rules.c
 *	  The rules: what begin returns, when a key expires, who may take a claim.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "datatype/timestamp.h"

#include "rules.h"
#include "timespan.h"

/* Retention is divided into so many steps at least, see rules_expires_at(). */
#define EXPIRY_STEPS 256

TimestampTz
rules_time_after(TimestampTz start, int64 span)
{
	TimestampTz end;

	if (pg_add_s64_overflow(start, span, &end) || !IS_VALID_TIMESTAMP(end))
		return END_TIMESTAMP - 1;
	return end;
}

/*
 * Is the time known at which the request was sent?  A key's own time counts
 * only if it is at most one retention ahead of now.
 */
static bool
sent_is_known(SentTime sent, int64 retention, TimestampTz now)
{
	if (sent.by == SENT_BY_KEY)
		return sent.at <= rules_time_after(now, retention);
	return sent.by == SENT_BY_CALLER;
}

/* The largest power of two that is not above retention / 256, at least 1. */
static int64
expiry_step(int64 retention)
{
	int64		limit = retention / EXPIRY_STEPS;
	int64		step = 1;

	while (step <= limit / 2)
		step *= 2;
	return step;
}

TimestampTz
rules_expires_at(TimestampTz now, SentTime sent, int64 retention)
{
	TimestampTz base = now;
	TimestampTz end;
	int64		step = expiry_step(retention);
	int64		beyond;

	if (sent_is_known(sent, retention, now))
		base = Max(base, Min(sent.at, rules_time_after(now, retention)));
	end = rules_time_after(base, retention);
	beyond = end % step;
	if (beyond > 0)
		end = rules_time_after(end, step - beyond);
	else if (beyond < 0)
		end -= beyond;
	return end;
}

bool
rules_is_claimed(const Stored *stored)
{
	return stored->has_claim && stored->claim.reset_at == 0;
}

bool
rules_key_is_expired(const StoredKey *key, TimestampTz now)
{
	return key->expires_at <= now;
}

bool
rules_lease_is_live(const StoredClaim *claim, TimestampTz now)
{
	return claim->lease_until > now;
}

bool
rules_attempt_is_ended(const StoredClaim *claim)
{
	return claim->retry_at != 0 || claim->parked_at != 0;
}

/* Must the claim be settled before anybody may try again? */
static bool
is_parked(const StoredClaim *claim, TimestampTz now)
{
	if (claim->parked_at != 0)
		return true;
	return claim->max_attempts > 0 &&
		claim->attempt_no >= claim->max_attempts &&
		!rules_lease_is_live(claim, now);
}

bool
rules_is_due(const StoredClaim *claim, TimestampTz now)
{
	return claim->reset_at == 0 && !rules_lease_is_live(claim, now) &&
		claim->retry_at <= now && !is_parked(claim, now);
}

int32
rules_retry_after(const Stored *stored, TimestampTz now)
{
	TimestampTz free_at = 0;

	/* When a transaction will end is not known: the client may retry soon. */
	if (rules_is_claimed(stored))
		free_at = Max(stored->claim.lease_until, stored->claim.retry_at);
	return timespan_retry_after(free_at > now ? free_at - now : 0);
}

int32
rules_last_attempt_no(int32 first_no, int max_attempts)
{
	int32		last;

	if (max_attempts == 0 ||
		pg_add_s32_overflow(first_no - 1, max_attempts, &last))
		return 0;
	return last;
}

/* The outcome where the key has a claim. */
static Outcome
outcome_of_claim(const RuleRequest *request, const StoredClaim *claim,
				 bool alone, TimestampTz now)
{
	if (fingerprint_differs(&claim->fingerprint, request->fingerprint))
		return OUTCOME_MISMATCH;
	if (is_parked(claim, now))
		return OUTCOME_PARKED;
	return alone && rules_is_due(claim, now) ? OUTCOME_RECOVERED :
		OUTCOME_IN_PROGRESS;
}

/*
 * Was the request sent so long ago that its key may have been pruned?  An
 * expired row that is still there proves it for requests sent before its
 * expiry, unless finish meant the answer to be forgotten early.
 */
static bool
is_too_late(const RuleRequest *request, const Stored *stored, TimestampTz now)
{
	if (!sent_is_known(request->sent, request->retention, now))
		return false;
	if (stored->has_key && !stored->key.shortened &&
		request->sent.at < stored->key.expires_at)
		return true;
	return rules_time_after(request->sent.at, request->retention) <= now;
}

Outcome
rules_outcome(const RuleRequest *request, const Stored *stored, bool alone,
			  TimestampTz now)
{
	if (stored->other_name)
		return OUTCOME_MISMATCH;
	if (stored->has_key && !rules_key_is_expired(&stored->key, now))
		return fingerprint_differs(&stored->key.fingerprint,
								   request->fingerprint) ?
			OUTCOME_MISMATCH : OUTCOME_REPLAYED;
	if (rules_is_claimed(stored))
		return outcome_of_claim(request, &stored->claim, alone, now);
	if (!alone)
		return OUTCOME_IN_PROGRESS;
	return is_too_late(request, stored, now) ? OUTCOME_EXPIRED :
		OUTCOME_STARTED;
}

int64
rules_backoff(int32 attempt_no, int64 base, int64 cap)
{
	int64		delay = base;

	while (--attempt_no > 0 && delay < cap)
	{
		if (pg_mul_s64_overflow(delay, 2, &delay))
			return cap;
	}
	return Min(delay, cap);
}
