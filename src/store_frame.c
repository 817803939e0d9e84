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
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "store_conflict.h"
#include "store_frame.h"
#include "store_table.h"

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

static bool
has_row_triggers(Relation rel)
{
	return rel->trigdesc != NULL &&
		(rel->trigdesc->trig_insert_before_row ||
		 rel->trigdesc->trig_update_before_row ||
		 rel->trigdesc->trig_delete_before_row);
}

/* The record of a correction must not be lost in a crash. */
static void
check_is_permanent(Relation rel, const char *table)
{
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" is not of a shape that keeps the promise of extension \"idempotency\"", table),
				 errdetail("It is unlogged: a crash would lose it.")));
}

/* Lock the table and note what the frame needs to know of it; its owner. */
static Oid
open_for_frame(StoreFrame *frame, LOCKMODE lockmode)
{
	Relation	rel;
	Oid			owner;

	frame->primary_key_name = NULL;
	if (frame->table < STORE_CHECKED_TABLES)
	{
		StoreTable	table;

		store_table_open(&table, frame->schema, frame->table, lockmode);
		frame->primary_key_name = pstrdup(NameStr(table.facts->primary_key_name));
		rel = table.rel;
	}
	else
	{
		rel = store_lock_table(frame->schema, store_tables[frame->table].name,
							   lockmode);
		check_is_permanent(rel, store_tables[frame->table].name);
	}
	owner = rel->rd_rel->relowner;
	frame->relid = RelationGetRelid(rel);
	frame->trigger_may_suppress = has_row_triggers(rel);
	table_close(rel, NoLock);
	return owner;
}

void
store_enter(StoreFrame *frame, Oid schema, StoreTableNo table,
			LOCKMODE lockmode)
{
	Oid			owner;

	frame->schema = schema;
	frame->table = table;
	frame->caller = CurrentMemoryContext;
	owner = open_for_frame(frame, lockmode);
	frame->schema_name = get_namespace_name(schema);

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
	const char *schema = quote_identifier(frame->schema_name);
	SPIPlanPtr	made = SPI_prepare_cursor(psprintf(plan->sql, schema, schema,
												   schema, schema, schema,
												   schema, schema),
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
		store_rethrow_conflict(frame->caller, frame->schema_name,
							   store_tables[frame->table].name,
							   frame->primary_key_name);
	}
	PG_END_TRY();
	plan->executing--;

	if (rc == SPI_OK_REWRITTEN)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("rules on table \"%s\" are not supported",
						store_tables[frame->table].name)));
	if (rc != expected)
		elog(ERROR, "SPI_execute_snapshot returned %s",
			 SPI_result_code_string(rc));
}

void
store_report_not_written(const StoreFrame *frame)
{
	if (frame->trigger_may_suppress)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
				 errmsg("row was not written to table \"%s\"",
						store_tables[frame->table].name),
				 errdetail("A trigger on the table suppressed it.")));
	store_report_conflict();
}

/*
 * The text of a table's INSERT or UPDATE, made from the list of its columns.
 * It is made once in a session and kept.
 */
static char *
row_statement(const StoreTableDef *def, bool update)
{
	StringInfoData sql;
	char	   *kept;

	initStringInfo(&sql);
	appendStringInfo(&sql, update ? "UPDATE %%s.%s SET " : "INSERT INTO %%s.%s (",
					 def->name);
	for (int i = update ? 1 : 0; i < def->ncolumns; i++)
		appendStringInfo(&sql, update ? "%s%s = $%d" : "%s%s",
						 i > (update ? 1 : 0) ? ", " : "",
						 def->columns[i].name, i + 1);
	if (update)
		appendStringInfo(&sql, " WHERE id OPERATOR(pg_catalog.=) $1"
						 " AND attempt OPERATOR(pg_catalog.=) $%d",
						 def->ncolumns + 1);
	else
	{
		appendStringInfoString(&sql, ") VALUES (");
		for (int i = 0; i < def->ncolumns; i++)
			appendStringInfo(&sql, i > 0 ? ", $%d" : "$%d", i + 1);
		appendStringInfoChar(&sql, ')');
	}
	kept = MemoryContextStrdup(TopMemoryContext, sql.data);
	pfree(sql.data);
	return kept;
}

/* The statement that inserts or updates a row of a table. */
static StorePlan *
row_plan(StoreTableNo table, bool update)
{
	static StorePlan plans[STORE_CHECKED_TABLES][2];
	const StoreTableDef *def = &store_tables[table];
	StorePlan  *plan = &plans[table][update];

	if (plan->sql == NULL)
	{
		for (int i = 0; i < def->ncolumns; i++)
			plan->argtypes[i] = def->columns[i].type;
		plan->argtypes[def->ncolumns] = INT4OID;
		plan->nargs = def->ncolumns + update;
		plan->sql = row_statement(def, update);
	}
	return plan;
}

/*
 * Insert a row, or update the one with its id, by a statement as the tables'
 * owner.  An update names the attempt number that it replaces (I6).
 */
static void
execute_row(Oid schema, StoreTableNo table, const StoreRow *row, bool update,
			int32 replaced_no)
{
	int			ncolumns = store_tables[table].ncolumns;
	StoreFrame	frame;
	Datum		values[STORE_MAX_ARGS];
	char		nulls[STORE_MAX_ARGS];

	for (int i = 0; i < ncolumns; i++)
	{
		values[i] = row->values[i];
		nulls[i] = row->isnull[i] ? 'n' : ' ';
	}
	values[ncolumns] = Int32GetDatum(replaced_no);
	nulls[ncolumns] = ' ';
	store_enter(&frame, schema, table, RowExclusiveLock);
	store_execute(&frame, row_plan(table, update), values, nulls,
				  update ? SPI_OK_UPDATE : SPI_OK_INSERT);
	if (SPI_processed != 1)
		store_report_not_written(&frame);
	store_leave(&frame);
}

void
store_insert_by_sql(Oid schema, StoreTableNo table, const StoreRow *row)
{
	execute_row(schema, table, row, false, 0);
}

void
store_update_by_sql(Oid schema, StoreTableNo table, const StoreRow *row,
					int32 replaced_no)
{
	execute_row(schema, table, row, true, replaced_no);
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
store_set_nullable(Datum *values, char *nulls, int arg, const void *pointer)
{
	values[arg] = PointerGetDatum(pointer);
	nulls[arg] = pointer == NULL ? 'n' : ' ';
}
