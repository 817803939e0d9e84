/*-------------------------------------------------------------------------
 *
 * keylock.c
 *	  A key's identity and its lock.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lock.h"
#include "utils/inval.h"
#include "utils/resowner.h"

#include "compat.h"
#include "keylock.h"
#include "keytime.h"
#include "sha256.h"
#include "utf8.h"

/*
 * The last identity that was computed: finish needs the one that begin did.
 * It follows from scope and key alone, so a remembered one is never stale.
 */
#define MEMO_SIZE 512
static struct
{
	int			scope_len;
	int			key_len;		/* 0: nothing is remembered */
	char		bytes[MEMO_SIZE];	/* the scope and the key */
	KeyId		id;
}			memo;

static bool
memo_read(const char *scope, int scope_len, const char *key, int key_len,
		  KeyId *id)
{
	if (memo.key_len != key_len || memo.scope_len != scope_len || key_len == 0 ||
		memcmp(memo.bytes, scope, scope_len) != 0 ||
		memcmp(memo.bytes + scope_len, key, key_len) != 0)
		return false;
	*id = memo.id;
	return true;
}

static void
memo_write(const char *scope, int scope_len, const char *key, int key_len,
		   const KeyId *id)
{
	if (scope_len + key_len > MEMO_SIZE)
		return;
	memo.scope_len = scope_len;
	memo.key_len = key_len;
	memcpy(memo.bytes, scope, scope_len);
	memcpy(memo.bytes + scope_len, key, key_len);
	memo.id = *id;
}

/* Feed what every digest of a key begins with. */
static void
hash_name(Sha256 *hash, const char *scope, int scope_len,
		  const char *key, int key_len)
{
	uint64		length = pg_hton64((uint64) scope_len);

	idem_sha256_init(hash);
	idem_sha256_update(hash, &length, sizeof(length));
	idem_sha256_update(hash, scope, scope_len);
	idem_sha256_update(hash, key, key_len);
}

/* All in UTF-8. */
static void
compute_id(const char *scope, int scope_len, const char *key, int key_len,
		   KeyId *id)
{
	uint8		digest[SHA256_LENGTH];
	uint64		millis;
	Sha256		hash;

	hash_name(&hash, scope, scope_len, key, key_len);
	idem_sha256_final(&hash, digest);
	memcpy(id->data, digest, UUID_LEN);
	if (!keytime_millis(key, key_len, &millis))
	{
		id->data[0] &= 0x7F;
		return;
	}
	for (int i = 0; i < 6; i++)
		id->data[i] = (uint8) (millis >> (40 - 8 * i));
	id->data[0] |= 0x80;
}

void
keylock_id(const char *scope, int scope_len, const char *key, int key_len,
		   KeyId *id)
{
	char	   *utf8_scope;
	char	   *utf8_key;
	int			utf8_scope_len = scope_len;
	int			utf8_key_len = key_len;

	if (memo_read(scope, scope_len, key, key_len, id))
		return;
	utf8_scope = utf8_from_server(scope, &utf8_scope_len);
	utf8_key = utf8_from_server(key, &utf8_key_len);
	compute_id(utf8_scope, utf8_scope_len, utf8_key, utf8_key_len, id);
	memo_write(scope, scope_len, key, key_len, id);
}

static char *
write_hex(char *to, const uint8 *bytes, int n)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < n; i++)
	{
		*to++ = digits[bytes[i] >> 4];
		*to++ = digits[bytes[i] & 0xF];
	}
	*to = '\0';
	return to;
}

void
keylock_derive(const char *scope, int scope_len, const char *key, int key_len,
			   const char *step, int step_len, char *derived)
{
	char	   *utf8_scope = utf8_from_server(scope, &scope_len);
	char	   *utf8_key = utf8_from_server(key, &key_len);
	char	   *utf8_step = utf8_from_server(step, &step_len);
	uint8		digest[SHA256_LENGTH];
	Sha256		hash;
	KeyId		id;

	compute_id(utf8_scope, scope_len, utf8_key, key_len, &id);
	hash_name(&hash, utf8_scope, scope_len, utf8_key, key_len);
	idem_sha256_update(&hash, "", 1);
	idem_sha256_update(&hash, utf8_step, step_len);
	idem_sha256_final(&hash, digest);
	derived = write_hex(derived, id.data, UUID_LEN);
	(void) write_hex(derived, digest, UUID_LEN);
}

/*
 * field 1: database; fields 2 and 3: the identity's last 64 bits, which are of
 * the hash in either form; field 4: class
 */
static void
keylock_tag(const KeyId *id, LOCKTAG *tag)
{
	uint32		high;
	uint32		low;

	memcpy(&high, id->data + UUID_LEN - sizeof(low) - sizeof(high), sizeof(high));
	memcpy(&low, id->data + UUID_LEN - sizeof(low), sizeof(low));
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId,
						 pg_ntoh32(high), pg_ntoh32(low), KEYLOCK_CLASS);
}

/*
 * Locks belong to the subtransaction, not to the portal that happens to run:
 * so they can be given back from another statement of it.  An error on the
 * way leaves CurrentResourceOwner to the abort that follows.
 */
static ResourceOwner
own_by_subtransaction(void)
{
	ResourceOwner saved = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	return saved;
}

static bool
acquire(const KeyId *id, bool dont_wait)
{
	ResourceOwner saved;
	LockAcquireResult result;
	LOCKTAG		tag;

	keylock_tag(id, &tag);
	saved = own_by_subtransaction();
	result = LockAcquire(&tag, ExclusiveLock, false, dont_wait);
	CurrentResourceOwner = saved;
	return result != LOCKACQUIRE_NOT_AVAIL;
}

bool
keylock_try(const KeyId *id)
{
	return acquire(id, true);
}

void
keylock_wait(const KeyId *id)
{
	(void) acquire(id, false);

	/*
	 * An advisory lock, unlike a relation's, does not read what others
	 * changed in the catalogs while we waited.
	 */
	AcceptInvalidationMessages();
}

void
keylock_release(const KeyId *id)
{
	ResourceOwner saved;
	bool		released;
	LOCKTAG		tag;

	keylock_tag(id, &tag);
	saved = own_by_subtransaction();
	released = LockRelease(&tag, ExclusiveLock, false);
	CurrentResourceOwner = saved;
	if (!released)
		elog(ERROR, "idempotency key lock is not held");
}

bool
keylock_is_held(const KeyId *id)
{
	LOCKTAG		tag;

	keylock_tag(id, &tag);
	return compat_lock_held_by_me(&tag, ExclusiveLock);
}

bool
keylock_held_elsewhere(const KeyId *id)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	int			count;

	keylock_tag(id, &tag);
	holders = GetLockConflicts(&tag, ExclusiveLock, &count);
	pfree(holders);				/* made anew for each call in a backend */
	return count > 0;
}
