/*-------------------------------------------------------------------------
 *
 * timespan.c
 *	  Lengths of time, between intervals and microseconds.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "timespan.h"

/* months (of 30 days) + days (of 24 hours) + usecs, checked for overflow */
static bool
timespan_sum(int64 months, int64 days, int64 usecs, int64 *result)
{
	int64		total;

	if (pg_mul_s64_overflow(months, DAYS_PER_MONTH, &total) ||
		pg_add_s64_overflow(total, days, &total) ||
		pg_mul_s64_overflow(total, USECS_PER_DAY, &total) ||
		pg_add_s64_overflow(total, usecs, &total))
		return false;
	*result = total;
	return true;
}

bool
timespan_from_interval(const Interval *span, int64 *usecs)
{
	if (INTERVAL_NOT_FINITE(span))
		return false;
	return timespan_sum(span->month, span->day, span->time, usecs);
}

Interval *
timespan_to_interval(int64 usecs)
{
	Interval   *span = palloc0(sizeof(Interval));

	span->time = usecs;
	return span;
}

int32
timespan_retry_after(int64 usecs)
{
	int64		seconds = usecs / USECS_PER_SEC + (usecs % USECS_PER_SEC > 0);

	return (int32) Min(Max(seconds, 1), PG_INT32_MAX);
}
