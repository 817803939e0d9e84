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

#include "keylock.h"
#include "sha256.h"

/*
 * The last identity that was asked for: finish asks for the one that begin
 * did.  It follows from scope and key alone, so what is remembered is never
 * out of date.
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

static void
compute_id(const char *scope, int scope_len, const char *key, int key_len,
		   KeyId *id)
{
	uint64		length = pg_hton64((uint64) scope_len);
	uint8		digest[SHA256_LENGTH];
	Sha256		hash;

	sha256_init(&hash);
	sha256_update(&hash, &length, sizeof(length));
	sha256_update(&hash, scope, scope_len);
	sha256_update(&hash, key, key_len);
	sha256_final(&hash, digest);
	memcpy(id->data, digest, UUID_LEN);
}

void
keylock_id(const char *scope, int scope_len, const char *key, int key_len,
		   KeyId *id)
{
	if (memo_read(scope, scope_len, key, key_len, id))
		return;
	compute_id(scope, scope_len, key, key_len, id);
	memo_write(scope, scope_len, key, key_len, id);
}

/* field 1: database; fields 2 and 3: 64 bits of the identity; field 4: class */
static void
keylock_tag(const KeyId *id, LOCKTAG *tag)
{
	uint32		high;
	uint32		low;

	memcpy(&high, id->data, sizeof(high));
	memcpy(&low, id->data + sizeof(high), sizeof(low));
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
