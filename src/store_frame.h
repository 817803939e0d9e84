/*-------------------------------------------------------------------------
 *
 * store_frame.h
 *	  How the store room runs SQL.  Only files of that room include this.
 *
 * Between store_enter() and store_leave() the code runs as the tables' owner,
 * row security does not apply, search_path holds pg_catalog alone, and the
 * active snapshot is newer than every lock the caller took before: in
 * REPEATABLE READ and SERIALIZABLE too, what the last holder of a key's lock
 * committed is seen.  An error leaves all that to the transaction's abort,
 * which undoes each of these.
 *
 * A plan is kept for the session and used only while PostgreSQL calls it
 * valid and the table is still the one it was made for, so that DROP and
 * CREATE EXTENSION, ALTER SCHEMA RENAME and the like need no care elsewhere.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_FRAME_H
#define IDEMPOTENCY_STORE_FRAME_H

#include "executor/spi.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"

#include "compat.h"
#include "store_rows.h"

#define STORE_MAX_ARGS (STORE_MAX_COLUMNS + 1)

/* A statement of the store: its text, and what is kept of it. */
typedef struct StorePlan
{
	const char *sql;			/* each %s stands for the quoted schema */
	int			nargs;
	Oid			argtypes[STORE_MAX_ARGS];
	Oid			relid;			/* the table that plan was made for */
	SPIPlanPtr	plan;			/* NULL if none is kept */
	int			executing;		/* how many executions are under way */
} StorePlan;

typedef struct StoreFrame
{
	Oid			schema;
	StoreTableNo table;
	Oid			relid;
	char	   *schema_name;
	char	   *primary_key_name;	/* NULL where nothing rests on it */
	bool		trigger_may_suppress;	/* there are BEFORE ROW triggers */
	MemoryContext caller;		/* where results belong */
	Oid			save_userid;
	int			save_sec_context;
	int			nestlevel;
} StoreFrame;

/* Lock and check the table, become its owner, and take a fresh snapshot. */
extern void store_enter(StoreFrame *frame, Oid schema, StoreTableNo table,
						LOCKMODE lockmode);
extern void store_leave(StoreFrame *frame);

/* The statement's plan, made anew if the kept one no longer fits. */
extern SPIPlanPtr store_plan(StoreFrame *frame, StorePlan *plan);

/*
 * Run a statement in the frame and expect this SPI result code.  A statement
 * that writes reports a conflict that the key's lock did not prevent as
 * 40001.  nulls may be NULL.
 */
extern void store_execute(StoreFrame *frame, StorePlan *plan, Datum *values,
						  const char *nulls, int expected);

/*
 * Insert the row of a table, or replace the one that has its id and, with
 * replaced_no, that attempt number.  A row that was not written is an error.
 */
extern void store_insert_by_sql(Oid schema, StoreTableNo table,
								const StoreRow *row);
extern void store_update_by_sql(Oid schema, StoreTableNo table,
								const StoreRow *row, int32 replaced_no);

/*
 * To be called where a row should have been written and was not.  Fails with
 * 09000 if a trigger may have suppressed it, and otherwise with 40001, since
 * another transaction must have changed it.
 */
pg_noreturn extern void store_report_not_written(const StoreFrame *frame);

/*
 * Column col of a row that the frame's statement returned: by value, or
 * copied into the memory of the frame's caller and out of TOAST (NULL if
 * null).
 */
extern Datum store_fetch(int row, int col, bool *isnull);
extern void *store_fetch_varlena(StoreFrame *frame, int row, int col);

/* A nullable argument of a plan: NULL stands for null. */
extern void store_set_nullable(Datum *values, char *nulls, int arg,
							   const void *pointer);

#endif							/* IDEMPOTENCY_STORE_FRAME_H */
