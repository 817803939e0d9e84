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
 * The milliseconds inside a key since 1970, 48 bits of them; false if it is
 * neither a UUIDv7 in its usual form (36 characters, either case) nor a ULID
 * (26 characters of Crockford's base 32, either case).  A key's identity
 * depends on this, so it never changes.
 */
extern bool keytime_millis(const char *key, int len, uint64 *millis);

/*
 * When the key was made, by its maker's clock; false if that is not known.
 * A time before 2016 is none: neither form existed, but a number of 26 decimal
 * digits looks like a ULID of before 2015, or of after 3000.
 */
extern bool keytime_known(const char *key, int len, TimestampTz *made_at);

#endif							/* IDEMPOTENCY_KEYTIME_H */
