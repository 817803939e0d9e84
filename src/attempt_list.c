/*-------------------------------------------------------------------------
 *
 * attempt_list.c
 *	  The attempts of the current transaction: savepoints, commit guard.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "attempt_list.h"
#include "errors.h"
#include "stats.h"

/* From this many attempts on, a key is looked up in a hash table. */
#define INDEX_FROM 32

/* The newest attempt on a key, open or not. */
typedef struct IndexEntry
{
	KeyId		id;				/* hash key */
	Attempt    *attempt;
} IndexEntry;

typedef struct AttemptList
{
	MemoryContext context;		/* a child of the transaction's */
	int			n;
	int			capacity;
	Attempt   **attempts;		/* in the order of their begins */
	HTAB	   *index;			/* NULL: not made, or no longer right */
	uint64		ends;			/* how many attempts have been ended */
	SubTransactionId newest;	/* no subtransaction above it is named here */
} AttemptList;

/* NULL outside of transactions that began an attempt. */
static AttemptList *list = NULL;

static void
list_create(void)
{
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "idempotency attempts",
												  ALLOCSET_SMALL_SIZES);
	AttemptList *made = MemoryContextAllocZero(context, sizeof(AttemptList));

	made->context = context;
	made->capacity = 4;
	made->attempts = MemoryContextAlloc(context,
										made->capacity * sizeof(Attempt *));
	list = made;
}

static void
index_attempt(HTAB *index, Attempt *attempt)
{
	IndexEntry *entry = hash_search(index, &attempt->id, HASH_ENTER, NULL);

	entry->attempt = attempt;
}

static void
index_create(void)
{
	HASHCTL		ctl;
	HTAB	   *made;

	ctl.keysize = sizeof(KeyId);
	ctl.entrysize = sizeof(IndexEntry);
	ctl.hcxt = list->context;
	made = hash_create("idempotency attempts", 4 * list->n, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < list->n; i++)
		index_attempt(made, list->attempts[i]);
	list->index = made;			/* when nothing can fail any more */
}

static Attempt *
index_lookup(const KeyId *id)
{
	IndexEntry *entry;

	if (list->index == NULL)
		index_create();
	entry = hash_search(list->index, id, HASH_FIND, NULL);
	return entry == NULL ? NULL : entry->attempt;
}

/* The newest attempt on a key, open or not, or NULL. */
static Attempt *
find_newest(const KeyId *id)
{
	if (list == NULL)
		return NULL;
	if (list->n >= INDEX_FROM)
		return index_lookup(id);
	for (int i = list->n - 1; i >= 0; i--)
	{
		Attempt    *attempt = list->attempts[i];

		if (memcmp(&attempt->id, id, sizeof(*id)) == 0)
			return attempt;
	}
	return NULL;
}

/* At most one attempt on a key is open, and it is the newest. */
Attempt *
attempt_list_open(const KeyId *id)
{
	Attempt    *attempt = find_newest(id);

	return attempt != NULL && attempt->ended_in == InvalidSubTransactionId ?
		attempt : NULL;
}

uint64
attempt_list_ends(void)
{
	return list == NULL ? 0 : list->ends;
}

bool
attempt_list_ended_after(const KeyId *id, uint64 ends)
{
	Attempt    *attempt = find_newest(id);

	return attempt != NULL && attempt->ended_in != InvalidSubTransactionId &&
		attempt->end > ends;
}

Attempt *
attempt_list_add(const KeyName *name)
{
	int			scope_len = VARSIZE_ANY_EXHDR(name->scope);
	int			key_len = VARSIZE_ANY_EXHDR(name->key);
	Attempt    *attempt;

	if (list == NULL)
		list_create();
	if (list->n == list->capacity)
	{
		list->attempts = repalloc(list->attempts,
								  2 * list->capacity * sizeof(Attempt *));
		list->capacity *= 2;
	}

	/* One piece, with both names behind it: a batch has thousands of them. */
	attempt = MemoryContextAlloc(list->context,
								 sizeof(Attempt) + scope_len + key_len + 2);
	memset(attempt, 0, sizeof(Attempt));
	attempt->id = name->id;
	attempt->scope = (char *) (attempt + 1);
	memcpy(attempt->scope, VARDATA_ANY(name->scope), scope_len);
	attempt->scope[scope_len] = '\0';
	attempt->key = attempt->scope + scope_len + 1;
	memcpy(attempt->key, VARDATA_ANY(name->key), key_len);
	attempt->key[key_len] = '\0';
	attempt->begun_in = GetCurrentSubTransactionId();

	list->newest = Max(list->newest, attempt->begun_in);
	list->attempts[list->n++] = attempt;
	if (list->index != NULL)
		index_attempt(list->index, attempt);
	return attempt;
}

void
attempt_list_end(Attempt *attempt)
{
	attempt->ended_in = GetCurrentSubTransactionId();
	attempt->end = ++list->ends;
	list->newest = Max(list->newest, attempt->ended_in);
}

bool
attempt_list_begun_here(const Attempt *attempt)
{
	return attempt->begun_in == GetCurrentSubTransactionId();
}

/*
 * Committing would end the lock and leave no key behind: the next retry would
 * do the work again.
 */
static void
commit_guard(void)
{
	for (int i = 0; i < list->n; i++)
	{
		Attempt    *attempt = list->attempts[i];

		if (attempt->leased || attempt->ended_in != InvalidSubTransactionId)
			continue;
		stats_count(STATS_GUARD_FAILURES, 1);
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
				 errmsg("cannot commit an idempotency attempt that is not finished"),
				 errdetail("The attempt on key \"%s\" in scope \"%s\" was begun in this transaction and neither finished nor released.",
						   attempt->key, attempt->scope),
				 errhint("Run begin, the work and idempotent_finish in one transaction (BEGIN ... COMMIT; autocommit ends it after begin), or give up with idempotent_release or ROLLBACK. Work that spans transactions needs a lease.")));
	}
}

static void
attempt_list_xact(XactEvent event, void *arg)
{
	if (list == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			commit_guard();
			break;
		default:
			/* It is over; the memory goes with the transaction's. */
			list = NULL;
			break;
	}
}

/* Subtransaction commits: what it did, its parent did. */
static void
merge_into_parent(SubTransactionId mine, SubTransactionId parent)
{
	for (int i = 0; i < list->n; i++)
	{
		Attempt    *attempt = list->attempts[i];

		if (attempt->begun_in == mine)
			attempt->begun_in = parent;
		if (attempt->ended_in == mine)
			attempt->ended_in = parent;
	}
	list->newest = parent;
}

/* Subtransaction aborts: its begins and ends have not been. */
static void
roll_back(SubTransactionId mine)
{
	int			kept = 0;

	for (int i = 0; i < list->n; i++)
	{
		Attempt    *attempt = list->attempts[i];

		if (attempt->begun_in == mine)
			continue;
		if (attempt->ended_in == mine)
			attempt->ended_in = InvalidSubTransactionId;
		list->attempts[kept++] = attempt;
	}
	list->n = kept;
	if (list->index != NULL)
	{
		hash_destroy(list->index);
		list->index = NULL;
	}
}

static void
attempt_list_subxact(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	/*
	 * Identifiers grow, and what is above this one has ended before it: most
	 * subtransactions touch no attempt, and cost nothing here.
	 */
	if (list == NULL || list->newest < mine)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		merge_into_parent(mine, parent);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		roll_back(mine);
}

void
attempt_list_init(void)
{
	RegisterXactCallback(attempt_list_xact, NULL);
	RegisterSubXactCallback(attempt_list_subxact, NULL);
}
