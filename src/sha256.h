/*-------------------------------------------------------------------------
 *
 * sha256.h
 *	  SHA-256 of a few bytes, at once.
 *
 * The server's own (common/cryptohash.h) is OpenSSL's, and setting that up
 * costs several microseconds in a backend that does other things in between:
 * half of what inserting a row costs, for the hundred bytes of a key.  This
 * one has nothing to set up.  For megabytes it is slower than OpenSSL's; those
 * are rare here, and parsing their JSON takes longer than their digest.
 *
 * FIPS 180-4, sections 4.1.2, 4.2.2, 5.1.1, 5.3.3 and 6.2.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_SHA256_H
#define IDEMPOTENCY_SHA256_H

#define SHA256_LENGTH 32
#define SHA256_BLOCK_LENGTH 64

typedef struct Sha256
{
	uint32		state[8];
	uint64		nbytes;			/* hashed so far, the buffer's included */
	uint8		buffer[SHA256_BLOCK_LENGTH];
} Sha256;

/* Needs no end: nothing is allocated. */
extern void idem_sha256_init(Sha256 *hash);
extern void idem_sha256_update(Sha256 *hash, const void *bytes, size_t len);
extern void idem_sha256_final(Sha256 *hash, uint8 *digest);

#endif							/* IDEMPOTENCY_SHA256_H */
