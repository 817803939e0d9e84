/*-------------------------------------------------------------------------
 *
 * attempt_list.c
 *	  The attempts of the current transaction: savepoints, commit guard.
 *
 * Attempts are kept in the order of their begins, and those that have ended
 * once more in the order of their ends.  While a subtransaction runs, only it
 * and its children add to either, so what it began and what it ended are the
 * tails of the two: its commit and its abort touch these and nothing else.
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

/* A growing array of attempts. */
typedef struct AttemptArray
{
	int			n;
	int			capacity;
	Attempt   **items;
} AttemptArray;

typedef struct AttemptList
{
	MemoryContext context;		/* a child of the transaction's */
	AttemptArray begun;			/* all, in the order of their begins */
	AttemptArray ended;			/* those that ended, in that order */
	HTAB	   *index;			/* NULL: not made yet */
} AttemptList;

/* NULL outside of transactions that began an attempt. */
static AttemptList *current_attempts = NULL;

static void guard_register(void);

static void
array_init(AttemptArray *array, MemoryContext context)
{
	array->capacity = 4;
	array->items = MemoryContextAlloc(context,
									  array->capacity * sizeof(Attempt *));
}

/* Make room for one more; nothing else of the array changes. */
static void
array_reserve(AttemptArray *array)
{
	if (array->n < array->capacity)
		return;
	array->items = repalloc_huge(array->items,
								 2 * (Size) array->capacity * sizeof(Attempt *));
	array->capacity *= 2;
}

static Attempt *
array_last(const AttemptArray *array)
{
	return array->n == 0 ? NULL : array->items[array->n - 1];
}

static void
list_create(void)
{
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "idempotency attempts",
												  ALLOCSET_SMALL_SIZES);
	AttemptList *made = MemoryContextAllocZero(context, sizeof(AttemptList));

	made->context = context;
	array_init(&made->begun, context);
	array_init(&made->ended, context);
	guard_register();
	current_attempts = made;
}

static void
index_attempt(HTAB *index, Attempt *attempt)
{
	IndexEntry *entry = hash_search(index, &attempt->id, HASH_ENTER, NULL);

	entry->attempt = attempt;
}

static void
index_create(AttemptList *list)
{
	HASHCTL		ctl;
	HTAB	   *made;

	ctl.keysize = sizeof(KeyId);
	ctl.entrysize = sizeof(IndexEntry);
	ctl.hcxt = list->context;
	made = hash_create("idempotency attempts", 4 * list->begun.n, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < list->begun.n; i++)
		index_attempt(made, list->begun.items[i]);
	list->index = made;			/* when nothing can fail any more */
}

/* The newest attempt on a key, open or not, or NULL. */
static Attempt *
find_newest(const KeyId *id)
{
	AttemptList *list = current_attempts;

	if (list == NULL)
		return NULL;
	if (list->index != NULL)
	{
		IndexEntry *entry = hash_search(list->index, id, HASH_FIND, NULL);

		return entry == NULL ? NULL : entry->attempt;
	}
	for (int i = list->begun.n - 1; i >= 0; i--)
	{
		Attempt    *attempt = list->begun.items[i];

		if (memcmp(&attempt->id, id, sizeof(*id)) == 0)
			return attempt;
	}
	return NULL;
}

static bool
is_open(const Attempt *attempt)
{
	return attempt->end_subid == InvalidSubTransactionId;
}

#ifdef USE_ASSERT_CHECKING
/* What holds of the list between calls. */
static void
assert_list(const AttemptList *list)
{
	Assert(list->ended.n <= list->begun.n);
	for (int i = 0; i < list->ended.n && i < INDEX_FROM; i++)
	{
		Assert(!is_open(list->ended.items[i]));
		Assert(list->ended.items[i]->end_seq == (uint64) i + 1);
	}
	for (int i = 0; i < list->begun.n && i < INDEX_FROM; i++)
	{
		const Attempt *attempt = list->begun.items[i];

		Assert(attempt->begin_subid != InvalidSubTransactionId);
		/* at most one attempt on a key is open, and it is the newest */
		Assert(attempt->previous == NULL || !is_open(attempt->previous));
	}
}
#else
#define assert_list(list) ((void) 0)
#endif

Attempt *
attempt_list_find_open(const KeyId *id)
{
	Attempt    *attempt = find_newest(id);

	return attempt != NULL && is_open(attempt) ? attempt : NULL;
}

uint64
attempt_list_current_end_seq(void)
{
	return current_attempts == NULL ? 0 : current_attempts->ended.n;
}

bool
attempt_list_ended_since(const KeyId *id, uint64 end_seq)
{
	Attempt    *attempt = find_newest(id);

	return attempt != NULL && !is_open(attempt) && attempt->end_seq > end_seq;
}

/* One piece, with both names behind it: a batch has thousands of them. */
static Attempt *
make_attempt(MemoryContext context, const KeyName *name)
{
	int			scope_len = VARSIZE_ANY_EXHDR(name->scope);
	int			key_len = VARSIZE_ANY_EXHDR(name->key);
	Attempt    *attempt = MemoryContextAlloc(context, sizeof(Attempt) +
											 scope_len + key_len + 2);

	memset(attempt, 0, sizeof(Attempt));
	attempt->id = name->id;
	attempt->scope = (char *) (attempt + 1);
	memcpy(attempt->scope, VARDATA_ANY(name->scope), scope_len);
	attempt->scope[scope_len] = '\0';
	attempt->key = attempt->scope + scope_len + 1;
	memcpy(attempt->key, VARDATA_ANY(name->key), key_len);
	attempt->key[key_len] = '\0';
	attempt->begin_subid = GetCurrentSubTransactionId();
	return attempt;
}

Attempt *
attempt_list_add(const KeyName *name)
{
	AttemptList *list;
	Attempt    *attempt;

	Assert(attempt_list_find_open(&name->id) == NULL);
	if (current_attempts == NULL)
		list_create();
	list = current_attempts;
	if (list->index == NULL && list->begun.n >= INDEX_FROM)
		index_create(list);
	array_reserve(&list->begun);
	attempt = make_attempt(list->context, name);
	attempt->previous = find_newest(&name->id);
	if (list->index != NULL)
		index_attempt(list->index, attempt);
	list->begun.items[list->begun.n++] = attempt;
	assert_list(list);
	return attempt;
}

void
attempt_list_mark_ended(Attempt *attempt)
{
	AttemptList *list = current_attempts;

	Assert(is_open(attempt));
	array_reserve(&list->ended);
	list->ended.items[list->ended.n++] = attempt;
	attempt->end_subid = GetCurrentSubTransactionId();
	attempt->end_seq = list->ended.n;
	assert_list(list);
}

/*
 * Fail a commit that would end the key's lock and leave no key behind: the
 * next retry would do the work again.
 */
static void
commit_guard(const AttemptList *list)
{
	for (int i = 0; i < list->begun.n; i++)
	{
		const Attempt *attempt = list->begun.items[i];

		if (attempt->under_lease || !is_open(attempt))
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

/*
 * Put the guard in front of the callbacks of other extensions.  PostgreSQL
 * calls the callback that was registered last first, and some (postgres_fdw,
 * Citus) commit remote transactions in theirs: that must not have happened
 * when the guard fails.  So each transaction's first attempt registers it
 * anew.  An attempt may be begun in another extension's callback, while
 * PostgreSQL walks through the registrations.  From 16 on it then knows already
 * which it calls next, so the old one must take itself away when it is called;
 * before 16 that would be wrong, since it asks the called one for the next.
 */
static char registrations[2];
static char *registered = NULL;

/* Guard the commit, and forget the list when the transaction has ended. */
static void
attempt_list_xact(XactEvent event, void *arg)
{
	if (arg != registered)
		UnregisterXactCallback(attempt_list_xact, arg);
	if (current_attempts == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			commit_guard(current_attempts);
			break;
		default:
			/* The transaction is over; the memory goes with its context. */
			current_attempts = NULL;
			break;
	}
}

static void
guard_register(void)
{
	char	   *next = &registrations[registered == &registrations[0] ? 1 : 0];

#if PG_VERSION_NUM < 160000
	UnregisterXactCallback(attempt_list_xact, registered);
#endif
	RegisterXactCallback(attempt_list_xact, next);
	registered = next;
}

/* On subtransaction commit, reassign its attempts to the parent. */
static void
merge_into_parent(AttemptList *list, SubTransactionId mine,
				  SubTransactionId parent)
{
	for (int i = list->begun.n - 1;
		 i >= 0 && list->begun.items[i]->begin_subid == mine; i--)
		list->begun.items[i]->begin_subid = parent;
	for (int i = list->ended.n - 1;
		 i >= 0 && list->ended.items[i]->end_subid == mine; i--)
		list->ended.items[i]->end_subid = parent;
}

/* Take the newest attempt off the list. */
static void
remove_last(AttemptList *list)
{
	Attempt    *attempt = list->begun.items[--list->begun.n];

	if (list->index == NULL)
		return;
	if (attempt->previous != NULL)
		index_attempt(list->index, attempt->previous);	/* the entry is there */
	else
		(void) hash_search(list->index, &attempt->id, HASH_REMOVE, NULL);
}

/* On subtransaction abort, forget attempts begun in it and reopen those ended in it. */
static void
roll_back(AttemptList *list, SubTransactionId mine)
{
	Attempt    *attempt;

	while ((attempt = array_last(&list->ended)) != NULL &&
		   attempt->end_subid == mine)
	{
		attempt->end_subid = InvalidSubTransactionId;
		list->ended.n--;
	}
	while ((attempt = array_last(&list->begun)) != NULL &&
		   attempt->begin_subid == mine)
		remove_last(list);
}

static void
attempt_list_subxact(SubXactEvent event, SubTransactionId mine,
					 SubTransactionId parent, void *arg)
{
	if (current_attempts == NULL)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		merge_into_parent(current_attempts, mine, parent);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		roll_back(current_attempts, mine);
}

void
attempt_list_init(void)
{
	RegisterSubXactCallback(attempt_list_subxact, NULL);
}
