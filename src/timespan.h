/*-------------------------------------------------------------------------
 *
 * timespan.h
 *	  Lengths of time, between intervals and microseconds.
 *
 * A retention or a lease is a length, not a date in a calendar: a day is 24
 * hours and a month 30 days, as when intervals are compared.  So when a key
 * expires does not depend on the session's TimeZone.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_TIMESPAN_H
#define IDEMPOTENCY_TIMESPAN_H

#include "datatype/timestamp.h"

/* An interval as microseconds; false if it is infinite or too long. */
extern bool timespan_from_interval(const Interval *span, int64 *usecs);

/* Microseconds as an interval of hours, minutes and seconds, palloc'd. */
extern Interval *timespan_to_interval(int64 usecs);

/* Microseconds as whole seconds, rounded up, at least 1: HTTP Retry-After. */
extern int32 timespan_retry_after(int64 usecs);

#endif							/* IDEMPOTENCY_TIMESPAN_H */
