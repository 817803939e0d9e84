/*-------------------------------------------------------------------------
 *
 * keytime.h
 *	  The time inside a key: UUIDv7 (RFC 9562) and ULID.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_KEYTIME_H
#define IDEMPOTENCY_KEYTIME_H

#include "datatype/timestamp.h"

/*
 * When the key was made, to the millisecond, by its maker's clock; false if
 * it is neither a UUIDv7 in its usual form (36 characters, either case) nor
 * a ULID (26 characters of Crockford's base 32, either case).
 */
extern bool keytime_of_key(const char *key, int len, TimestampTz *made_at);

#endif							/* IDEMPOTENCY_KEYTIME_H */
