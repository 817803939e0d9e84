/*-------------------------------------------------------------------------
 *
 * store_resolve.c
 *	  Corrections, and the comparison with another service's list.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"
#include "store_frame.h"

static StorePlan plan_insert_correction = {
	"INSERT INTO %s.idempotency_corrections (id, scope, key, what, attempt,"
	" checkpoint, state, error, status, headers, response, body, failed,"
	" finished_at, corrected_at, corrected_by, reason)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
	" $15, $16, $17)",
	17, {UUIDOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, TEXTOID, JSONBOID,
		TEXTOID, INT4OID, JSONBOID, JSONBOID, BYTEAOID, BOOLOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
};

static StorePlan plan_delete_corrections = {
	"DELETE FROM %s.idempotency_corrections WHERE id OPERATOR(pg_catalog.=) $1",
	1, {UUIDOID}
};

static StorePlan plan_delete_scope_corrections = {
	"DELETE FROM %s.idempotency_corrections WHERE scope OPERATOR(pg_catalog.=) $1",
	1, {TEXTOID}
};

/*
 * One statement.  Operators and functions are pg_catalog's, since the frame's
 * search_path has no other schema.
 *
 * sorted: their lines, those of one derived key side by side, done first.
 * said: the first line of each key, which speaks for it; ok is null if all is
 * pending.  twice: the lines of a key that were done more than once.
 * open, found: what is stored under the ids of these keys, whatever the step; a
 * claim outranks the row of an expired key.  matched: those of this step.
 *
 * The planner takes the lines for a few, and the plan is kept.  So rows of the
 * tables are found by their primary keys, and the lists of lines are never
 * joined, only searched by NOT IN, which hashes them.  Nothing is aggregated for a
 * key that has one line: that took as long as all the rest.
 */
#define IS_REFUSED "(COALESCE(k.failed, false) OR COALESCE(k.status >= 400, false))"
#define OURS "scope, key, attempt, status, response, first_seen_at"
#define NOT_OURS "NULL, NULL, NULL, NULL, NULL, NULL"
#define IS_OF_STEP "derived = %s.idempotent_derive(scope, key, $2)"
#define IN_WINDOW(row) \
	" " row ".first_seen_at >= $3 AND " row ".first_seen_at < $4" \
	" AND CASE WHEN $5 IS NULL THEN true" \
	"  WHEN right($5, 1) = '%%' THEN starts_with(" row ".scope, left($5, -1))" \
	"  ELSE " row ".scope = $5 END" \
	" AND " row ".id NOT IN (SELECT id FROM matched)"

static StorePlan plan_reconcile = {
	"WITH lines AS ("
	" SELECT lower((l.line ->> 'key') COLLATE \"C\") AS derived, l.line, l.n,"
	"  CASE l.line -> 'ok' WHEN 'true' THEN true WHEN 'false' THEN false END AS ok"
	" FROM jsonb_array_elements($1) WITH ORDINALITY AS l (line, n)),"
	"sorted AS MATERIALIZED ("
	" SELECT *, first_value(n) OVER of_key AS first,"
	"  count(*) FILTER (WHERE ok) OVER of_key AS times_ok"
	" FROM lines WINDOW of_key AS (PARTITION BY derived"
	"  ORDER BY ok DESC NULLS LAST, n"
	"  ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)),"
	"said AS MATERIALIZED ("
	" SELECT derived, line, n, ok,"
	"  CASE WHEN octet_length(derived) = 64 AND derived !~ '[^0-9a-f]'"
	"   THEN left(derived, 32)::uuid END AS id"
	" FROM sorted WHERE n = first),"
	"twice AS ("
	" SELECT first AS n, jsonb_agg(line ORDER BY n) AS lines FROM sorted"
	" WHERE ok AND times_ok > 1 GROUP BY first),"
	"open AS MATERIALIZED ("
	" SELECT s.*, c.scope, c.key, c.attempt, NULL::int4 AS status,"
	"  NULL::jsonb AS response, c.first_seen_at, false AS finished, false AS refused"
	" FROM said s JOIN %s.idempotency_claims c ON c.id = s.id"
	" WHERE c.reset_at IS NULL),"
	"found AS MATERIALIZED ("
	" SELECT *, " IS_OF_STEP " AS is_of_step FROM open"
	" UNION ALL "
	" SELECT s.*, k.scope, k.key, k.attempt, k.status, k.response,"
	"  k.first_seen_at, true, " IS_REFUSED ", " IS_OF_STEP
	" FROM said s JOIN %s.idempotency_keys k ON k.id = s.id"
	" WHERE s.id NOT IN (SELECT id FROM open)),"
	"matched AS (SELECT * FROM found WHERE is_of_step),"
	"compared AS ("
	" SELECT CASE WHEN NOT finished THEN CASE WHEN ok THEN 'open_here' ELSE 'open_refused' END"
	"   WHEN refused AND ok THEN 'refused_here'"
	"   WHEN NOT refused AND NOT ok THEN 'refused_there' END AS verdict, " OURS ", line"
	" FROM matched WHERE ok IS NOT NULL)"
	" SELECT * FROM compared WHERE verdict IS NOT NULL"
	" UNION ALL "
	" SELECT 'unknown_here', " NOT_OURS ", line FROM said"
	" WHERE ok AND n NOT IN (SELECT n FROM found)"
	" UNION ALL "
	" SELECT 'twice_there', " OURS ", lines FROM twice JOIN matched USING (n)"
	" UNION ALL "
	" SELECT 'twice_there', " NOT_OURS ", lines FROM twice"
	" WHERE n NOT IN (SELECT n FROM found)"
	" UNION ALL "
	" SELECT 'open_missing', c.scope, c.key, c.attempt, NULL, NULL,"
	"  c.first_seen_at, NULL"
	" FROM %s.idempotency_claims c WHERE c.reset_at IS NULL AND" IN_WINDOW("c")
	" UNION ALL "
	" SELECT 'missing_there', k.scope, k.key, k.attempt, k.status, k.response,"
	"  k.first_seen_at, NULL"
	" FROM %s.idempotency_keys k"
	" WHERE k.expires_at >= $3 AND NOT " IS_REFUSED " AND" IN_WINDOW("k")
	" AND NOT EXISTS (SELECT FROM %s.idempotency_claims c"
	"  WHERE c.id = k.id AND c.reset_at IS NULL)",
	5, {JSONBOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID}
};

void
store_insert_correction(const KeyName *name, const Correction *correction)
{
	const Response *response = &correction->response;
	StoreFrame	frame;
	Datum		values[17];
	char		nulls[17];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&name->id);
	values[1] = PointerGetDatum(name->scope);
	values[2] = PointerGetDatum(name->key);
	values[3] = CStringGetTextDatum(correction->what);
	values[4] = Int32GetDatum(correction->attempt_no);
	nulls[4] = correction->attempt_no == 0 ? 'n' : ' ';
	store_set_nullable(values, nulls, 5, correction->checkpoint);
	store_set_nullable(values, nulls, 6, correction->state);
	store_set_nullable(values, nulls, 7, correction->error);
	values[8] = Int32GetDatum(response->status);
	nulls[8] = response->has_status ? ' ' : 'n';
	store_set_nullable(values, nulls, 9, response->headers);
	store_set_nullable(values, nulls, 10, response->response);
	store_set_nullable(values, nulls, 11, response->body);
	values[12] = BoolGetDatum(response->failed);
	nulls[12] = response->failed ? ' ' : 'n';
	values[13] = TimestampTzGetDatum(correction->finished_at);
	nulls[13] = correction->finished_at == 0 ? 'n' : ' ';
	values[14] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[15] = CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false));
	values[16] = PointerGetDatum(correction->reason);

	store_enter(&frame, name->schema, STORE_CORRECTIONS, RowExclusiveLock);
	store_execute(&frame, &plan_insert_correction, values, nulls,
				  SPI_OK_INSERT);
	if (SPI_processed != 1)
		store_report_not_written(&frame);
	store_leave(&frame);
}

static uint64
delete_corrections(Oid schema, StorePlan *plan, Datum value)
{
	StoreFrame	frame;
	uint64		deleted;

	store_enter(&frame, schema, STORE_CORRECTIONS, RowExclusiveLock);
	store_execute(&frame, plan, &value, NULL, SPI_OK_DELETE);
	deleted = SPI_processed;
	store_leave(&frame);
	return deleted;
}

bool
store_delete_corrections(const KeyName *name)
{
	return delete_corrections(name->schema, &plan_delete_corrections,
							  UUIDPGetDatum(&name->id)) > 0;
}

void
store_delete_scope_corrections(Oid schema, text *scope)
{
	(void) delete_corrections(schema, &plan_delete_scope_corrections,
							  PointerGetDatum(scope));
}

/* The rows just fetched. */
static void
receive_rows(RowReceiver receive, void *arg)
{
	for (int row = 0; row < SPI_processed; row++)
	{
		Datum		values[RECONCILE_COLUMNS];
		bool		isnull[RECONCILE_COLUMNS];

		for (int col = 0; col < RECONCILE_COLUMNS; col++)
			values[col] = store_fetch(row, col + 1, &isnull[col]);
		receive(values, isnull, arg);
	}
	SPI_freetuptable(SPI_tuptable);
}

void
store_reconcile(Oid schema, Jsonb *theirs, text *step, TimestampTz since,
				TimestampTz until, text *scope, RowReceiver receive, void *arg)
{
	StoreFrame	frame;
	Portal		rows;
	Datum		values[5];
	char		nulls[5];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = JsonbPGetDatum(theirs);
	values[1] = PointerGetDatum(step);
	values[2] = TimestampTzGetDatum(since);
	values[3] = TimestampTzGetDatum(until);
	store_set_nullable(values, nulls, 4, scope);

	store_enter(&frame, schema, STORE_KEYS, AccessShareLock);
	rows = SPI_cursor_open(NULL, store_plan(&frame, &plan_reconcile), values,
						   nulls, true);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(rows, true, 1000);
		if (SPI_processed == 0)
			break;
		receive_rows(receive, arg);
	} while (true);
	SPI_cursor_close(rows);
	store_leave(&frame);
}
