/*-------------------------------------------------------------------------
 *
 * store_conflict.c
 *	  How the store room reports what the key's lock did not prevent.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "store_conflict.h"

void
store_report_conflict(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to an idempotency key due to a concurrent change"),
			 errhint("Retry the transaction with the same key.")));
}

/*
 * Is the error a violation of our table's primary key?  Others (of an index
 * that a user has added, of a trigger's own tables) are theirs.  Their names
 * were fetched before the error: the catalogs cannot be read now.
 */
static bool
is_duplicate_id(const ErrorData *edata, const char *schema,
				const char *table, const char *primary_key_name)
{
	if (edata->sqlerrcode != ERRCODE_UNIQUE_VIOLATION ||
		primary_key_name == NULL || edata->constraint_name == NULL ||
		strcmp(edata->constraint_name, primary_key_name) != 0)
		return false;
	return schema == NULL ||
		(edata->schema_name != NULL && edata->table_name != NULL &&
		 strcmp(edata->schema_name, schema) == 0 &&
		 strcmp(edata->table_name, table) == 0);
}

/*
 * Convert a unique violation on our primary key into a serialization failure.
 * The key's lock serializes writers that use this extension, so a duplicate
 * can only come from elsewhere (a manual INSERT, logical replication).
 * Retrying the transaction resolves it, and the caller need not know about
 * the index.
 */
void
store_rethrow_conflict(MemoryContext caller, const char *schema,
					   const char *table, const char *primary_key_name)
{
	ErrorData  *edata;

	if (geterrcode() != ERRCODE_UNIQUE_VIOLATION &&
		geterrcode() != ERRCODE_T_R_SERIALIZATION_FAILURE)
		PG_RE_THROW();

	MemoryContextSwitchTo(caller);
	edata = CopyErrorData();
	FlushErrorState();
	if (edata->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
	{
		if (!is_duplicate_id(edata, schema, table, primary_key_name))
			ReThrowError(edata);
		edata->sqlerrcode = ERRCODE_T_R_SERIALIZATION_FAILURE;
		edata->message = pstrdup("could not serialize access to an idempotency key due to a concurrent change");
		edata->detail = NULL;
	}
	if (edata->hint == NULL)
		edata->hint = pstrdup("Retry the transaction with the same key.");
	ReThrowError(edata);
}
