/*-------------------------------------------------------------------------
 *
 * utf8.c
 *	  Text in UTF-8, whatever the database's encoding.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_conversion.h"
#include "catalog/pg_namespace.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "utf8.h"

bool
utf8_is_server_encoding(void)
{
	int			encoding = GetDatabaseEncoding();

	return encoding == PG_UTF8 || encoding == PG_SQL_ASCII;
}

/*
 * By PostgreSQL's own conversion, found in pg_catalog alone: a user's CREATE
 * DEFAULT CONVERSION must not make another key of it.
 */
char *
utf8_from_server(const char *string, int *len)
{
	int			encoding = GetDatabaseEncoding();
	Size		size = (Size) *len * MAX_CONVERSION_GROWTH + 1;
	char	   *result;
	Oid			proc;

	if (utf8_is_server_encoding() || *len == 0)
		return unconstify(char *, string);
	proc = FindDefaultConversion(PG_CATALOG_NAMESPACE, encoding, PG_UTF8);
	if (!OidIsValid(proc))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("idempotency keys are not supported in a database with encoding %s",
						pg_encoding_to_char(encoding)),
				 errdetail("A key's identity is computed in UTF8, and PostgreSQL has no conversion from %s to UTF8.",
						   pg_encoding_to_char(encoding)),
				 errhint("Use a database with encoding UTF8.")));
	result = MemoryContextAllocHuge(CurrentMemoryContext, size);
	(void) OidFunctionCall6(proc, Int32GetDatum(encoding),
							Int32GetDatum(PG_UTF8), CStringGetDatum(string),
							CStringGetDatum(result), Int32GetDatum(*len),
							BoolGetDatum(false));
	*len = strlen(result);
	return result;
}
