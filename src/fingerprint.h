/*-------------------------------------------------------------------------
 *
 * fingerprint.h
 *	  The digest of a request, by which a retry is compared with the first call.
 *
 * A stored fingerprint is a first byte that names its form, and the digest:
 *
 *	  0  the caller's own digest, 1 to 64 bytes, as it was given
 *	  1  SHA-256 over the canonical form, version 1, of a jsonb
 *
 * In the canonical form two jsonb values that are equal (=) have the same
 * bytes and two that are not have different ones.  A later release that
 * changes the form takes the next number, and old keys stay comparable with
 * nothing newer: they are not turned into mismatches.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_FINGERPRINT_H
#define IDEMPOTENCY_FINGERPRINT_H

#include "utils/jsonb.h"

#define FINGERPRINT_MAX_DIGEST 64

/* A fingerprint, or the absence of one (len 0). */
typedef struct Fingerprint
{
	int			len;
	uint8		bytes[1 + FINGERPRINT_MAX_DIGEST];
} Fingerprint;

/* The fingerprint of a request. */
extern void fingerprint_of_jsonb(Jsonb *request, Fingerprint *result);

/* The fingerprint that a caller brings; len is 1 to FINGERPRINT_MAX_DIGEST. */
extern void fingerprint_of_digest(const void *digest, int len,
								  Fingerprint *result);

/*
 * Are these two known to be of different requests?  Only if both exist and
 * their forms can be compared.
 */
extern bool fingerprint_differs(const Fingerprint *stored,
								const Fingerprint *given);

#endif							/* IDEMPOTENCY_FINGERPRINT_H */
