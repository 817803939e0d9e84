/*-------------------------------------------------------------------------
 *
 * keylock.h
 *	  A key's identity and its lock.
 *
 * The identity is 128 bits of SHA-256 over the scope's length in bytes (8
 * bytes, big-endian), the scope and the key, all in UTF-8 whatever the
 * database's encoding (SQL_ASCII: the bytes as they are).  It depends on
 * nothing that a user can SET.  Where the key is, in full, a UUIDv7 or a ULID
 * (keytime.h), the first bit is 1 and the next 47 are the low 47 bits of its
 * milliseconds, and the other 80 are bytes 6 to 15 of the digest: such keys
 * grow the index at its end, behind all others.  Otherwise the first bit is 0.
 * test/vectors freezes the form.
 *
 * The lock is an advisory lock of a private class, exclusive and always of
 * the transaction: it ends with the transaction or with the rollback of the
 * subtransaction that took it, never with the session.  The last 64 bits of
 * the identity go into it; a collision may cost a wait, never a wrong answer,
 * for what is stored is found by the whole identity.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_KEYLOCK_H
#define IDEMPOTENCY_KEYLOCK_H

#include "utils/uuid.h"

/*
 * Field 4 of our lock tags, which pg_locks shows as objsubid: the low 15 bits
 * of the first 16 of SHA-256('idempotency').  SQL can only make 1 and 2.
 */
#define KEYLOCK_CLASS 0x75D3

typedef pg_uuid_t KeyId;

/* The identity of a key in a scope. */
extern void keylock_id(const char *scope, int scope_len,
					   const char *key, int key_len, KeyId *id);

/*
 * The key under which a worker calls another service: the identity's 32
 * hexadecimal digits, and 32 of the first 128 bits of SHA-256 over the scope's
 * length, the scope, the key, a zero byte and the step.
 */
#define KEYLOCK_DERIVED_LEN 64
extern void keylock_derive(const char *scope, int scope_len,
						   const char *key, int key_len,
						   const char *step, int step_len, char *derived);

/* Take the lock if no other transaction holds it; never waits. */
extern bool keylock_try(const KeyId *id);

/*
 * Take the lock, waiting as long as it takes; lock_timeout, cancel and the
 * deadlock detector end the wait with their own errors.
 */
extern void keylock_wait(const KeyId *id);

/* Give back one keylock_try() of this very subtransaction. */
extern void keylock_release(const KeyId *id);

/* Does this transaction hold the lock?  For assertions. */
extern bool keylock_is_held(const KeyId *id);

/* Does another transaction, prepared ones included, hold the lock? */
extern bool keylock_held_elsewhere(const KeyId *id);

#endif							/* IDEMPOTENCY_KEYLOCK_H */
