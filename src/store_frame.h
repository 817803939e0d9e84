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

#include "compat.h"
#include "fingerprint.h"

#define STORE_KEYS "idempotency_keys"
#define STORE_CLAIMS "idempotency_claims"
#define STORE_MAX_ARGS 15

/* A statement of the store: what it says, and what is kept of it. */
typedef struct StorePlan
{
	const char *sql;			/* %s stands for the quoted schema */
	int			nargs;
	Oid			argtypes[STORE_MAX_ARGS];
	Oid			relid;			/* the table that plan was made for */
	SPIPlanPtr	plan;			/* NULL if none is kept */
	int			executing;		/* how many executions are under way */
} StorePlan;

typedef struct StoreFrame
{
	Oid			schema;
	const char *table;			/* unqualified */
	Oid			relid;
	MemoryContext caller;		/* where results belong */
	Oid			save_userid;
	int			save_sec_context;
	int			nestlevel;
} StoreFrame;

/*
 * Lock a table that a frame on another one is to read too.  It must be done
 * before the frame is entered, whose snapshot has to be newer than the lock.
 */
extern void store_lock(Oid schema, const char *table, LOCKMODE lockmode);

/* Lock the table, become its owner, and take a fresh snapshot. */
extern void store_enter(StoreFrame *frame, Oid schema, const char *table,
						LOCKMODE lockmode);
extern void store_leave(StoreFrame *frame);

/* The statement's plan, made anew if the kept one no longer fits. */
extern SPIPlanPtr store_plan(StoreFrame *frame, StorePlan *plan);

/* Insert one row by a statement: one that is not stored is an error. */
extern void store_execute_insert(StoreFrame *frame, StorePlan *plan,
								 Datum *values, const char *nulls);

/*
 * Run a statement in the frame and expect this SPI result code.  A statement
 * that writes reports a conflict that the key's lock did not prevent as
 * 40001.  nulls may be NULL.
 */
extern void store_execute(StoreFrame *frame, StorePlan *plan, Datum *values,
						  const char *nulls, int expected);

/*
 * To be called where a row should have been written and was not: fails, with
 * 09000 if there are triggers that may have suppressed it, and else with
 * 40001, since somebody else must have been at it.
 */
pg_noreturn extern void store_not_stored(Oid schema, const char *table);

/*
 * To be called where an error of a write to the table was caught: throws it
 * again, a conflict as 40001 with a hint.
 */
pg_noreturn extern void store_rethrow_conflict(MemoryContext caller,
											   Oid schema, const char *table);

/*
 * Column col of a row that the frame's statement returned: by value, or
 * copied into the memory of the frame's caller and out of TOAST (NULL if
 * null), or as a fingerprint, or an interval as microseconds (0 if null).
 */
extern Datum store_fetch(int row, int col, bool *isnull);
extern void *store_fetch_varlena(StoreFrame *frame, int row, int col);
extern void store_fetch_fingerprint(StoreFrame *frame, int row, int col,
									Fingerprint *result);
extern int64 store_fetch_timespan(int row, int col);

/* A nullable argument of a plan: NULL stands for null. */
extern void store_set_nullable(Datum *values, char *nulls, int arg,
							   const void *pointer);

/* A palloc'd stored value, or NULL, as a fingerprint; frees the value. */
extern void store_set_fingerprint(bytea *value, Fingerprint *result);

/* A fingerprint as it is stored; NULL if there is none. */
extern bytea *store_fingerprint(const Fingerprint *fingerprint);

#endif							/* IDEMPOTENCY_STORE_FRAME_H */
