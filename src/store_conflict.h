/*-------------------------------------------------------------------------
 *
 * store_conflict.h
 *	  How the store room reports what the key's lock did not prevent.  Only
 *	  files of that room include this.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STORE_CONFLICT_H
#define IDEMPOTENCY_STORE_CONFLICT_H

#include "compat.h"

/* Fail with 40001, and the hint to retry. */
pg_noreturn extern void store_report_conflict(void);

/*
 * To be called where an error of a write to the table was caught: throws it
 * again, a conflict as 40001 with a hint.  Without a schema and a table,
 * nothing but a write to ours can have raised the error.
 */
pg_noreturn extern void store_rethrow_conflict(MemoryContext caller,
											   const char *schema,
											   const char *table,
											   const char *primary_key_name);

#endif							/* IDEMPOTENCY_STORE_CONFLICT_H */
