/*-------------------------------------------------------------------------
 *
 * timespan.c
 *	  Lengths of time: from an interval or the text of a setting to
 *	  microseconds.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"
#include "pgtime.h"
#include "utils/datetime.h"
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

/* What interval_in() does, without its errors. */
bool
timespan_from_text(const char *text, int64 *usecs)
{
	struct pg_itm_in itm;
	char		work[256];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf;
	int			dtype;

	memset(&itm, 0, sizeof(itm));
	if (ParseDateTime(text, work, sizeof(work), field, ftype,
					  MAXDATEFIELDS, &nf) != 0 ||
		DecodeInterval(field, ftype, nf, INTERVAL_FULL_RANGE,
					   &dtype, &itm) != 0)
	{
		char	   *copy = strlen(text) < sizeof(work) ? strcpy(work, text) : NULL;

		if (copy == NULL ||
			DecodeISO8601Interval(copy, &dtype, &itm) != 0)
			return false;
	}
	if (dtype != DTK_DELTA)
		return false;
	return timespan_sum((int64) itm.tm_year * MONTHS_PER_YEAR + itm.tm_mon,
						itm.tm_mday, itm.tm_usec, usecs);
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
