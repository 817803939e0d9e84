/*-------------------------------------------------------------------------
 *
 * sha256.c
 *	  SHA-256 of a few bytes, at once.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "sha256.h"

/* Fractional parts of the cube roots of the first 64 primes. */
static const uint32 constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};

/* Fractional parts of the square roots of the first 8 primes. */
static const uint32 initial[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
	0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
};

static inline uint32
rotate(uint32 x, int n)
{
	return (x >> n) | (x << (32 - n));
}

static void
expand_block(const uint8 *block, uint32 *w)
{
	for (int i = 0; i < 16; i++)
	{
		memcpy(&w[i], block + 4 * i, 4);
		w[i] = pg_ntoh32(w[i]);
	}
	for (int i = 16; i < 64; i++)
	{
		uint32		a = w[i - 15];
		uint32		b = w[i - 2];

		w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ (a >> 3)) +
			w[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ (b >> 10));
	}
}

/* One round, which changes d and h; the caller renames the words. */
#define ROUND(a, b, c, d, e, f, g, h, addend) \
	do { \
		h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + \
			(g ^ (e & (f ^ g))) + (addend); \
		d += h; \
		h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + \
			((a & b) | (c & (a | b))); \
	} while (0)

/*
 * Compress one block of 64 bytes into the state (FIPS 180-4, 6.2.2).  Eight
 * rounds a turn, so that the variables need not be moved.
 */
static void
hash_block(uint32 *state, const uint8 *block)
{
	uint32		a = state[0];
	uint32		b = state[1];
	uint32		c = state[2];
	uint32		d = state[3];
	uint32		e = state[4];
	uint32		f = state[5];
	uint32		g = state[6];
	uint32		h = state[7];
	uint32		w[64];

	expand_block(block, w);
	for (int i = 0; i < 64; i += 8)
	{
		ROUND(a, b, c, d, e, f, g, h, constants[i] + w[i]);
		ROUND(h, a, b, c, d, e, f, g, constants[i + 1] + w[i + 1]);
		ROUND(g, h, a, b, c, d, e, f, constants[i + 2] + w[i + 2]);
		ROUND(f, g, h, a, b, c, d, e, constants[i + 3] + w[i + 3]);
		ROUND(e, f, g, h, a, b, c, d, constants[i + 4] + w[i + 4]);
		ROUND(d, e, f, g, h, a, b, c, constants[i + 5] + w[i + 5]);
		ROUND(c, d, e, f, g, h, a, b, constants[i + 6] + w[i + 6]);
		ROUND(b, c, d, e, f, g, h, a, constants[i + 7] + w[i + 7]);
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void
idem_sha256_init(Sha256 *hash)
{
	memcpy(hash->state, initial, sizeof(hash->state));
	hash->nbytes = 0;
}

void
idem_sha256_update(Sha256 *hash, const void *bytes, size_t len)
{
	const uint8 *next = bytes;

	while (len > 0)
	{
		size_t		used = hash->nbytes % SHA256_BLOCK_LENGTH;
		size_t		n = Min(len, SHA256_BLOCK_LENGTH - used);

		if (n == SHA256_BLOCK_LENGTH)
			hash_block(hash->state, next);
		else
		{
			memcpy(hash->buffer + used, next, n);
			if (used + n == SHA256_BLOCK_LENGTH)
				hash_block(hash->state, hash->buffer);
		}
		hash->nbytes += n;
		next += n;
		len -= n;
	}
}

/* A one bit, zeros up to the last eight bytes of a block, the length in bits. */
void
idem_sha256_final(Sha256 *hash, uint8 *digest)
{
	static const uint8 padding[SHA256_BLOCK_LENGTH] = {0x80};
	uint64		nbits = pg_hton64(hash->nbytes * 8);
	size_t		used = hash->nbytes % SHA256_BLOCK_LENGTH;
	size_t		room = SHA256_BLOCK_LENGTH - sizeof(nbits);

	idem_sha256_update(hash, padding,
					   used < room ? room - used : SHA256_BLOCK_LENGTH + room - used);
	idem_sha256_update(hash, &nbits, sizeof(nbits));
	for (int i = 0; i < 8; i++)
	{
		uint32		word = pg_hton32(hash->state[i]);

		memcpy(digest + 4 * i, &word, sizeof(word));
	}
}
