/*-------------------------------------------------------------------------
 *
 * citus.c
 *	  What must be known of Citus: is a table distributed, is this a worker?
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "citus.h"

bool
citus_is_loaded(void)
{
	static int	loaded = -1;

	if (loaded < 0)
		loaded = GetConfigOption("citus.shard_count", true, false) != NULL;
	return loaded;
}

/* Open one of Citus's tables, or NULL where the extension was not created. */
static Relation
open_citus_table(const char *name)
{
	Oid			relid = get_relname_relid(name, PG_CATALOG_NAMESPACE);

	return OidIsValid(relid) ? try_table_open(relid, AccessShareLock) : NULL;
}

/*
 * Does the table of Citus have a row whose column has this value (or, with
 * other_than, another one)?  The tables are small, and only servers with Citus
 * come here.
 */
static bool
has_row(const char *name, const char *column, int64 value, bool other_than)
{
	Relation	rel = open_citus_table(name);
	SysScanDesc scan;
	HeapTuple	tuple;
	AttrNumber	attnum;
	bool		found = false;

	if (rel == NULL)
		return false;
	attnum = get_attnum(RelationGetRelid(rel), column);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && AttributeNumberIsValid(attnum) &&
		   HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, attnum, RelationGetDescr(rel),
										 &isnull);

		found = !isnull && ((int64) DatumGetUInt32(datum) == value) != other_than;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

bool
citus_has_distributed(Oid relid)
{
	return has_row("pg_dist_partition", "logicalrelid", (int64) relid, false);
}

/* The coordinator's group is 0. */
bool
citus_is_worker_node(void)
{
	return has_row("pg_dist_local_group", "groupid", 0, true);
}
