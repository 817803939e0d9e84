/*-------------------------------------------------------------------------
 *
 * store_frame.c
 *	  How the store room runs SQL: as whom, under which search_path, with
 *	  which snapshot and from which plan.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "store_frame.h"
#include "timespan.h"

/*
 * Lock a table with what it is made of, or fail; the caller closes it.  A
 * snapshot that is to show the rows must be taken after this: a rewrite by
 * ALTER TABLE hides them from older ones.
 */
static Relation
lock_table(Oid schema, const char *table, LOCKMODE lockmode)
{
	Oid			relid = get_relname_relid(table, schema);
	Relation	rel;

	/* Locking also reads the invalidations that plans depend on. */
	rel = OidIsValid(relid) ? try_table_open(relid, lockmode) : NULL;
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" of extension \"idempotency\" does not exist", table),
				 errhint("Create the extension anew; its functions and tables belong in one schema.")));
	if (rel->rd_rel->relhassubclass)
		list_free(find_all_inheritors(relid, lockmode, NULL));
	return rel;
}

void
store_lock(Oid schema, const char *table, LOCKMODE lockmode)
{
	table_close(lock_table(schema, table, lockmode), NoLock);
}

static void
set_in_frame(const char *setting, const char *value)
{
	(void) set_config_option(setting, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Every statement finds its rows through an index, however small or however
 * badly analysed the table is when the plan is made: the plan outlives that
 * moment, and under SERIALIZABLE a sequential scan would conflict with every
 * other key.  Nor must a plan be compiled, which would take longer than all
 * it does.  A plan may be made anew at any execution, so this holds in the
 * whole frame.
 */
static void
set_for_planning(void)
{
	set_in_frame("enable_seqscan", "off");
	set_in_frame("jit", "off");
}

void
store_enter(StoreFrame *frame, Oid schema, const char *table,
			LOCKMODE lockmode)
{
	Relation	rel = lock_table(schema, table, lockmode);
	Oid			owner = rel->rd_rel->relowner;

	frame->schema = schema;
	frame->table = table;
	frame->caller = CurrentMemoryContext;
	frame->relid = RelationGetRelid(rel);
	table_close(rel, NoLock);

	frame->nestlevel = NewGUCNestLevel();
	RestrictSearchPath();
	set_for_planning();
	GetUserIdAndSecContext(&frame->save_userid, &frame->save_sec_context);
	SetUserIdAndSecContext(owner,
						   frame->save_sec_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
store_leave(StoreFrame *frame)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PopActiveSnapshot();
	SetUserIdAndSecContext(frame->save_userid, frame->save_sec_context);
	AtEOXact_GUC(true, frame->nestlevel);
}

static SPIPlanPtr
prepare(StoreFrame *frame, StorePlan *plan)
{
	const char *schema = quote_identifier(get_namespace_name(frame->schema));
	SPIPlanPtr	made = SPI_prepare_cursor(psprintf(plan->sql, schema, schema),
										  plan->nargs, plan->argtypes,
										  CURSOR_OPT_GENERIC_PLAN);

	if (made == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	return made;
}

/*
 * A trigger on the tables may come here again, while the plan is executed and
 * after it has become invalid: that plan is not ours to free then, and the
 * inner statement gets one that ends with its frame.
 */
SPIPlanPtr
store_plan(StoreFrame *frame, StorePlan *plan)
{
	SPIPlanPtr	made;

	if (plan->plan != NULL && plan->relid == frame->relid &&
		SPI_plan_is_valid(plan->plan))
		return plan->plan;
	if (plan->executing > 0)
		return prepare(frame, plan);
	if (plan->plan != NULL)
	{
		SPIPlanPtr	old = plan->plan;

		plan->plan = NULL;
		SPI_freeplan(old);
	}

	made = prepare(frame, plan);
	if (SPI_keepplan(made) != 0)
		elog(ERROR, "SPI_keepplan failed");
	plan->relid = frame->relid;
	plan->plan = made;
	return made;
}

/*
 * Is this our table, or a partition of it?  Asked after a unique violation
 * alone, which is raised with no lock held that a look into the catalogs
 * could run into.
 */
static bool
is_of_table(const ErrorData *edata, Oid schema, const char *table)
{
	Oid			ours = get_relname_relid(table, schema);
	Oid			theirs;

	if (edata->table_name == NULL || edata->schema_name == NULL)
		return false;
	theirs = get_relname_relid(edata->table_name,
							   get_namespace_oid(edata->schema_name, true));
	if (theirs == ours)
		return OidIsValid(ours);
	return OidIsValid(theirs) && get_rel_relispartition(theirs) &&
		list_member_oid(get_partition_ancestors(theirs), ours);
}

/*
 * The key's lock keeps two writers of one key apart.  What it cannot keep
 * out, a row that came another way (the owner's own INSERT, replication) or a
 * prune of this very key, is for the caller a conflict that a retry settles,
 * never a unique violation that it would have to interpret.
 */
void
store_rethrow_conflict(MemoryContext caller, Oid schema, const char *table)
{
	ErrorData  *edata;
	bool		unique_violation = geterrcode() == ERRCODE_UNIQUE_VIOLATION;

	if (!unique_violation && geterrcode() != ERRCODE_T_R_SERIALIZATION_FAILURE)
		PG_RE_THROW();

	MemoryContextSwitchTo(caller);
	edata = CopyErrorData();
	FlushErrorState();
	if (unique_violation)
	{
		if (!is_of_table(edata, schema, table))
			ReThrowError(edata);	/* a trigger's own business */
		edata->sqlerrcode = ERRCODE_T_R_SERIALIZATION_FAILURE;
		edata->message = pstrdup("could not serialize access to an idempotency key due to a concurrent change");
		edata->detail = NULL;
	}
	if (edata->hint == NULL)
		edata->hint = pstrdup("Retry the transaction with the same key.");
	ReThrowError(edata);
}

void
store_execute(StoreFrame *frame, StorePlan *plan, Datum *values,
			  const char *nulls, int expected)
{
	SPIPlanPtr	spi_plan = store_plan(frame, plan);
	int			rc = 0;

	plan->executing++;
	PG_TRY();
	{
		rc = SPI_execute_snapshot(spi_plan, values, nulls,
								  GetActiveSnapshot(), InvalidSnapshot,
								  expected == SPI_OK_SELECT, true, 0);
	}
	PG_CATCH();
	{
		plan->executing--;
		store_rethrow_conflict(frame->caller, frame->schema, frame->table);
	}
	PG_END_TRY();
	plan->executing--;

	if (rc == SPI_OK_REWRITTEN)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("rules on table \"%s\" are not supported", frame->table)));
	if (rc != expected)
		elog(ERROR, "SPI_execute_snapshot returned %s",
			 SPI_result_code_string(rc));
}

static void
refuse_trigger(const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
			 errmsg("row was not stored in table \"%s\"", table),
			 errdetail("A trigger on the table suppressed it.")));
}

void
store_not_stored(Oid schema, const char *table)
{
	Relation	rel = lock_table(schema, table, AccessShareLock);
	bool		suppressed = rel->trigdesc != NULL &&
		(rel->trigdesc->trig_insert_before_row ||
		 rel->trigdesc->trig_update_before_row);

	table_close(rel, NoLock);
	if (suppressed)
		refuse_trigger(table);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to an idempotency key due to a concurrent change"),
			 errhint("Retry the transaction with the same key.")));
}

void
store_execute_insert(StoreFrame *frame, StorePlan *plan, Datum *values,
					 const char *nulls)
{
	store_execute(frame, plan, values, nulls, SPI_OK_INSERT);
	if (SPI_processed != 1)
		refuse_trigger(frame->table);
}

Datum
store_fetch(int row, int col, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 col, isnull);
}

void *
store_fetch_varlena(StoreFrame *frame, int row, int col)
{
	MemoryContext spi_context = CurrentMemoryContext;
	bool		isnull;
	Datum		value = store_fetch(row, col, &isnull);
	void	   *copy;

	if (isnull)
		return NULL;
	MemoryContextSwitchTo(frame->caller);
	copy = PG_DETOAST_DATUM_COPY(value);
	MemoryContextSwitchTo(spi_context);
	return copy;
}

void
store_set_fingerprint(bytea *value, Fingerprint *result)
{
	result->len = 0;
	if (value == NULL)
		return;
	if (VARSIZE_ANY_EXHDR(value) > sizeof(result->bytes))
		elog(ERROR, "stored fingerprint is too long");
	result->len = VARSIZE_ANY_EXHDR(value);
	memcpy(result->bytes, VARDATA_ANY(value), result->len);
	pfree(value);
}

void
store_fetch_fingerprint(StoreFrame *frame, int row, int col,
						Fingerprint *result)
{
	store_set_fingerprint(store_fetch_varlena(frame, row, col), result);
}

int64
store_fetch_timespan(int row, int col)
{
	bool		isnull;
	Datum		value = store_fetch(row, col, &isnull);
	int64		usecs;

	if (isnull)
		return 0;
	if (!timespan_from_interval(DatumGetIntervalP(value), &usecs))
		elog(ERROR, "stored interval is out of range");
	return usecs;
}

void
store_set_nullable(Datum *values, char *nulls, int arg, const void *pointer)
{
	values[arg] = PointerGetDatum(pointer);
	nulls[arg] = pointer == NULL ? 'n' : ' ';
}

bytea *
store_fingerprint(const Fingerprint *fingerprint)
{
	if (fingerprint->len == 0)
		return NULL;
	return (bytea *) cstring_to_text_with_len((const char *) fingerprint->bytes,
											  fingerprint->len);
}
