/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  The SQLSTATEs of idempotency, in one place.
 *
 * Class "IK" is ours: it is in the range that the SQL standard leaves to
 * implementations, and no PostgreSQL error uses it.  The last three
 * characters are the HTTP status that a service would answer with, so that
 * an application needs no table.  Next to these a caller meets PostgreSQL's
 * own 0A000 (tables of a shape that cannot keep the promise), 25006
 * (read-only), 40001 (retry), 40P01 (deadlock), 55P03 (lock_timeout) and
 * 57014 (cancelled).
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ERRORS_H
#define IDEMPOTENCY_ERRORS_H

#include "utils/elog.h"

/* key or scope missing, empty or too long; an argument out of range */
#define ERRCODE_IDEMPOTENCY_BAD_REQUEST		MAKE_SQLSTATE('I','K','4','0','0')
/* another attempt holds a live lease, or the next try is not due */
#define ERRCODE_IDEMPOTENCY_IN_PROGRESS		MAKE_SQLSTATE('I','K','4','0','9')
/* this attempt is no longer the key's: overtaken, finished or forgotten */
#define ERRCODE_IDEMPOTENCY_OVERTAKEN		MAKE_SQLSTATE('I','K','4','1','0')
/* the request is older than the retention */
#define ERRCODE_IDEMPOTENCY_EXPIRED			MAKE_SQLSTATE('I','K','4','1','2')
/* the response is over idempotency.max_response_size */
#define ERRCODE_IDEMPOTENCY_TOO_LARGE		MAKE_SQLSTATE('I','K','4','1','3')
/* the key was used with another fingerprint */
#define ERRCODE_IDEMPOTENCY_MISMATCH		MAKE_SQLSTATE('I','K','4','2','2')
/* parked: the outcome is not known, and nobody may try again */
#define ERRCODE_IDEMPOTENCY_PARKED			MAKE_SQLSTATE('I','K','4','2','3')
/* misuse: finish without begin, commit without finish, begin twice */
#define ERRCODE_IDEMPOTENCY_MISUSE			MAKE_SQLSTATE('I','K','5','0','0')

#endif							/* IDEMPOTENCY_ERRORS_H */
