/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  The front door: module, and the functions that SQL calls.
 *
 * Terms
 * =====
 *
 * A key is a scope and a key in it; its id is a hash of the two.  A finished
 * key is a row of idempotency_keys; it expires at a time, and an expired row
 * counts as absent.  A claim is a row of idempotency_claims: a key under lease
 * that is not finished.  A claim is live until its lease ends; it is due when
 * its lease is over and the time that release gave has come; it is parked when
 * nobody may take it.  A counter is a claim of which only the attempt number
 * is left.  An attempt is numbered; the number is the fencing token.
 *
 * The key's lock is an advisory lock of a private class (src/keylock.h),
 * exclusive and of the transaction.
 *
 * Invariants
 * ==========
 *
 *	I1	At most one finished row of a key has not expired.
 *	I2	The work of a key commits at most once while the key has not expired,
 *		and only together with the key's row.
 *	I3	A transaction that writes a key or a claim holds the key's lock to its
 *		end.  (A batch of more than 200 keys holds it until the key's
 *		row is inserted; the uncommitted row stands in for the lock after that.
 *		idempotent_forget_scope holds it until the finished key's row is
 *		deleted.)
 *	I4	A key or a claim is read after its lock was taken, as it is then,
 *		whatever the transaction's snapshot shows.
 *	I5	An attempt number of a key is given out at most once while its claim or
 *		counter is stored.
 *	I6	Only the attempt whose number is stored may write to the claim.  The
 *		number is compared under the lock, and again by the statement.
 *	I7	Nobody but an administrator gets a claim that is live, not yet due, or
 *		parked.
 *	I8	A transaction with an open attempt that is not under lease cannot
 *		commit or be prepared.
 *	I9	A transaction that goes on at a checkpoint sees the work of that
 *		checkpoint, or fails with 40001.
 *	I10	What is stored outranks every judgement about time, length and
 *		settings.
 *	I11	An answer expires no earlier than its finish plus its retention.
 *	I12	idempotent_resolve never overwrites what its caller has not seen.
 *
 * The states of a key
 * ===================
 *
 *	             begin               finish
 *	  absent ------------> open ----------------> finished
 *	   ^  ^                 |                      |    |
 *	   |  +-----------------+                      |    | correct
 *	   |    release, ROLLBACK,                     |    +-> finished
 *	   |    crash                                  |
 *	   +-------------------------------------------+
 *	              expiry (prune), forget
 *
 *	             begin, lease           checkpoint
 *	  absent ------------------> live ----------------> live
 *	   or                        | | |
 *	  counter      lease is over | | | finish
 *	     ^        +--------------+ | +-----------> finished
 *	     |        v      release   |
 *	     |       due <------------ +
 *	     |        |  after its     |
 *	     |        |  time          | park, or the last attempt ends
 *	     |        |                v
 *	     |        +---> live    parked --- retry ---> live
 *	     |   begin, resume         |
 *	     |                         | resolve
 *	     +--- reset, forget        +-------------> finished
 *
 *	transition			function
 *	absent -> open		start_here (attempt.c); writes nothing
 *	due -> open			recover_here (attempt.c)
 *	open -> finished	finish_here (attempt.c)
 *	open -> absent		release_here, or nobody: the transaction's end
 *	absent -> live		lease_claim (attempt_lease.c)
 *	due -> live			take_claim (attempt_lease.c)
 *	live -> finished	lease_finish
 *	live -> due			write_release, or nobody: the clock
 *	live -> parked		lease_park, or nobody: the clock
 *	parked -> live		lease_retry
 *	parked -> finished	store_answer (attempt_resolve.c)
 *	finished, corrected	correct_key (attempt_resolve.c)
 *	any -> counter		write_release with reset, forget_claim (attempt.c)
 *	finished -> absent	store_prune (store_prune.c), forget_stored
 *
 * What may be relied upon: in "open" nothing of the key is stored but, for a
 * batch, its uncommitted row, and only the key's lock (or that row) keeps
 * others away; in "live", "due" and "parked" the claim is committed, and the
 * lock is held only while somebody writes to it.
 *
 * Order of locks: the key's lock, then the tables' (AccessShare to read,
 * RowExclusive to write), then rows.  Prune takes no key's lock: it passes
 * over keys whose lock is held and rows that are locked.  Two transactions
 * that begin two keys in opposite order deadlock as two UPDATEs would, and one
 * fails.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/parallel.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "src/attempt.h"
#include "src/attempt_call.h"
#include "src/attempt_many.h"
#include "src/attempt_resolve.h"
#include "src/command.h"
#include "src/compat.h"
#include "src/errors.h"
#include "src/settings.h"
#include "src/stats.h"
#include "src/timespan.h"
#include "src/utf8.h"

IDEMPOTENCY_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

/* A scope is the application's own text; this only stops mistakes. */
#define MAX_SCOPE_LENGTH 1024

/* Longer than this, and the time of an expiry could not be represented. */
#define MAX_RETENTION (100000 * (365 * USECS_PER_DAY))

void
_PG_init(void)
{
	settings_init();
	stats_init();
	attempt_init();
}

/* Arguments ---------------------------------------------------------------- */

/* What a function that writes needs of its transaction. */
static void
check_may_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
}

static void
check_not_null(FunctionCallInfo fcinfo, int arg, const char *what)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s must not be null", what)));
}

/* A name must not be empty; NULL stands for null. */
static void
check_name(text *name, const char *what)
{
	if (name == NULL || VARSIZE_ANY_EXHDR(name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("idempotency %s must not be null or empty", what)));
}

static text *
get_scope(FunctionCallInfo fcinfo)
{
	text	   *scope = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	int			len;

	check_name(scope, "scope");
	len = VARSIZE_ANY_EXHDR(scope);
	if (len > MAX_SCOPE_LENGTH &&
		pg_mbstrlen_with_len(VARDATA_ANY(scope), len) > MAX_SCOPE_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("idempotency scope is too long"),
				 errdetail("It must have at most %d characters.",
						   MAX_SCOPE_LENGTH)));
	return scope;
}

static Oid
extension_schema(FunctionCallInfo fcinfo)
{
	return get_func_namespace(fcinfo->flinfo->fn_oid);
}

static void
set_key_name(KeyName *name, Oid schema, text *scope, text *key)
{
	name->schema = schema;
	name->scope = scope;
	name->key = key;
	keylock_id(VARDATA_ANY(scope), VARSIZE_ANY_EXHDR(scope),
			   VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key), &name->id);
}

/*
 * Arguments 0 and 1 of every function on a key.  How long a key may be is
 * judged once nothing is found to be stored of it.
 */
static void
get_key_name(FunctionCallInfo fcinfo, KeyName *name)
{
	text	   *scope = get_scope(fcinfo);
	text	   *key = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);

	check_name(key, "key");
	set_key_name(name, extension_schema(fcinfo), scope, key);
}

/* The same for a batch; also the keys themselves, in the order given. */
static int
get_key_names(FunctionCallInfo fcinfo, KeyName **names, Datum **keys)
{
	text	   *scope = get_scope(fcinfo);
	Oid			schema = extension_schema(fcinfo);
	bool	   *nulls;
	int			n;

	check_not_null(fcinfo, 1, "keys");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false,
					  TYPALIGN_INT, keys, &nulls, &n);
	*names = palloc(sizeof(KeyName) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		text	   *key = nulls[i] ? NULL : DatumGetTextPP((*keys)[i]);

		check_name(key, "key");
		set_key_name(&(*names)[i], schema, scope, key);
	}
	return n;
}

/* A length of time of min to max microseconds; missing if it is null. */
static int64
get_timespan(FunctionCallInfo fcinfo, int arg, const char *what, int64 min,
			 int64 max, int64 missing)
{
	int64		usecs;

	if (PG_ARGISNULL(arg))
		return missing;
	if (!timespan_from_interval(PG_GETARG_INTERVAL_P(arg), &usecs) ||
		usecs < min || usecs > max)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s is out of range", what),
				 errdetail("It must be %s and at most %lld days.",
						   min > 0 ? "greater than zero" : "zero or more",
						   (long long) (max / USECS_PER_DAY))));
	return usecs;
}

static int64
get_retention(FunctionCallInfo fcinfo, int arg, int64 missing)
{
	return get_timespan(fcinfo, arg, "retention", 1, MAX_RETENTION, missing);
}

/* 0 if it is null. */
static int64
get_lease(FunctionCallInfo fcinfo, int arg)
{
	return get_timespan(fcinfo, arg, "lease", 1, RULES_MAX_LEASE, 0);
}

/* A count of 1 or more; 0 if it is null. */
static int32
get_count(FunctionCallInfo fcinfo, int arg, const char *what)
{
	int32		value;

	if (PG_ARGISNULL(arg))
		return 0;
	value = PG_GETARG_INT32(arg);
	if (value < 1)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s must be at least 1", what)));
	return value;
}

/* A text that must be there. */
static text *
get_text(FunctionCallInfo fcinfo, int arg, const char *what)
{
	text	   *value = PG_ARGISNULL(arg) ? NULL : PG_GETARG_TEXT_PP(arg);

	if (value == NULL || VARSIZE_ANY_EXHDR(value) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s must not be null or empty", what)));
	return value;
}

static Jsonb *
get_jsonb(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : PG_GETARG_JSONB_P(arg);
}

/* Arguments 2 and 3 of begin, of which at most one is given. */
static void
get_fingerprint(FunctionCallInfo fcinfo, AttemptRequest *request)
{
	bytea	   *digest = PG_ARGISNULL(3) ? NULL : PG_GETARG_BYTEA_PP(3);

	request->request = get_jsonb(fcinfo, 2);
	if (request->request != NULL && digest != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("request and fingerprint cannot both be given")));
	if (request->request != NULL)
		fingerprint_of_jsonb(request->request, &request->fingerprint);
	if (digest != NULL)
	{
		int			len = VARSIZE_ANY_EXHDR(digest);

		if (len < 1 || len > FINGERPRINT_MAX_DIGEST)
			ereport(ERROR,
					(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
					 errmsg("fingerprint must have 1 to %d bytes",
							FINGERPRINT_MAX_DIGEST)));
		fingerprint_of_digest(VARDATA_ANY(digest), len, &request->fingerprint);
	}
}

static void
get_request(FunctionCallInfo fcinfo, AttemptRequest *request)
{
	memset(request, 0, sizeof(*request));
	get_key_name(fcinfo, &request->name);
	get_fingerprint(fcinfo, request);
	request->retention = get_retention(fcinfo, 4, settings_retention());
	if (PG_ARGISNULL(5))
		request->sent = attempt_sent_by_key(request->name.key);
	else
	{
		request->sent.by = SENT_BY_CALLER;
		request->sent.at = PG_GETARG_TIMESTAMPTZ(5);
	}
	request->lease = get_lease(fcinfo, 6);
}

/* A text's bytes in UTF-8, whatever the database's encoding. */
static bytea *
get_body_text(FunctionCallInfo fcinfo, int arg)
{
	text	   *value = PG_GETARG_TEXT_PP(arg);
	int			len = VARSIZE_ANY_EXHDR(value);
	char	   *utf8 = utf8_from_server(VARDATA_ANY(value), &len);

	return (bytea *) cstring_to_text_with_len(utf8, len);
}

/* The arguments response, status, headers, body and body_text. */
static void
get_response(FunctionCallInfo fcinfo, int response_arg, int body_text_arg,
			 Response *response)
{
	int			status_arg = response_arg + 1;
	int			headers_arg = response_arg + 2;
	int			body_arg = response_arg + 3;

	memset(response, 0, sizeof(*response));
	response->response = get_jsonb(fcinfo, response_arg);
	response->has_status = !PG_ARGISNULL(status_arg);
	response->status = response->has_status ? PG_GETARG_INT32(status_arg) : 0;
	response->headers = get_jsonb(fcinfo, headers_arg);
	if (!PG_ARGISNULL(body_arg) && !PG_ARGISNULL(body_text_arg))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("body and body_text cannot both be given")));
	if (!PG_ARGISNULL(body_arg))
		response->body = PG_GETARG_BYTEA_PP(body_arg);
	else if (!PG_ARGISNULL(body_text_arg))
		response->body = get_body_text(fcinfo, body_text_arg);
}

/* Results ------------------------------------------------------------------ */

/* An outcome's name in SQL. */
static const char *
outcome_name(Outcome outcome)
{
	switch (outcome)
	{
		case OUTCOME_STARTED:
			return "started";
		case OUTCOME_REPLAYED:
			return "replayed";
		case OUTCOME_RECOVERED:
			return "recovered";
		case OUTCOME_IN_PROGRESS:
			return "in_progress";
		case OUTCOME_MISMATCH:
			return "mismatch";
		case OUTCOME_EXPIRED:
			return "expired";
		case OUTCOME_PARKED:
			return "parked";
		case OUTCOME_EXECUTED:
			return "executed";
		case OUTCOME_FAILED:
			return "failed";
	}
	elog(ERROR, "unexpected outcome: %d", (int) outcome);
	return NULL;				/* keep compiler quiet */
}

static void
set_pointer(Datum *values, bool *nulls, int col, const void *pointer)
{
	values[col] = PointerGetDatum(pointer);
	nulls[col] = pointer == NULL;
}

static void
set_time(Datum *values, bool *nulls, int col, TimestampTz time)
{
	values[col] = TimestampTzGetDatum(time);
	nulls[col] = time == 0;
}

static void
set_int(Datum *values, bool *nulls, int col, int32 value)
{
	values[col] = Int32GetDatum(value);
	nulls[col] = value == 0;
}

#define ATTEMPT_COLUMNS 14

/*
 * Set the columns of idempotent_attempt.  Fields that do not apply to the
 * outcome are null.
 */
static void
form_attempt(const AttemptResult *result, Datum *values, bool *nulls)
{
	const Response *response = &result->response;

	memset(nulls, 0, ATTEMPT_COLUMNS * sizeof(bool));
	values[0] = CStringGetTextDatum(outcome_name(result->outcome));
	values[1] = BoolGetDatum(result->replayed);
	set_int(values, nulls, 2, result->attempt_no);
	values[3] = Int32GetDatum(response->status);
	nulls[3] = !response->has_status;
	set_pointer(values, nulls, 4, response->headers);
	set_pointer(values, nulls, 5, response->response);
	set_pointer(values, nulls, 6, response->body);
	set_pointer(values, nulls, 7, result->checkpoint);
	set_pointer(values, nulls, 8, result->state);
	set_time(values, nulls, 9, result->first_seen_at);
	set_time(values, nulls, 10, result->finished_at);
	set_time(values, nulls, 11, result->expires_at);
	set_int(values, nulls, 12, result->retry_after);
	set_pointer(values, nulls, 13, result->error);
}

/*
 * A session may outlive an update of the extension, which may have added
 * columns to a row type.  This library knows nothing of them: they are null.
 */
static HeapTuple
form_row(TupleDesc desc, Datum *values, bool *nulls, int n)
{
	Datum	   *all_values;
	bool	   *all_nulls;

	if (desc->natts <= n)
		return heap_form_tuple(desc, values, nulls);
	all_values = palloc0(desc->natts * sizeof(Datum));
	all_nulls = palloc(desc->natts * sizeof(bool));
	memset(all_nulls, true, desc->natts * sizeof(bool));
	memcpy(all_values, values, n * sizeof(Datum));
	memcpy(all_nulls, nulls, n * sizeof(bool));
	return heap_form_tuple(desc, all_values, all_nulls);
}

/*
 * The function's row type is the type cache's own; a copy for each call site,
 * as get_call_result_type() makes, is most of what a call site costs.
 */
static Datum
attempt_datum(FunctionCallInfo fcinfo, const AttemptResult *result)
{
	Oid			type = get_func_rettype(fcinfo->flinfo->fn_oid);
	TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);
	Datum		values[ATTEMPT_COLUMNS];
	bool		nulls[ATTEMPT_COLUMNS];
	HeapTuple	tuple;

	form_attempt(result, values, nulls);
	tuple = form_row(desc, values, nulls, ATTEMPT_COLUMNS);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

#define CLAIM_COLUMNS 9

static void
form_claim(const KeyName *name, const StoredClaim *claim, Datum *values,
		   bool *nulls)
{
	memset(nulls, 0, CLAIM_COLUMNS * sizeof(bool));
	values[0] = PointerGetDatum(name->scope);
	values[1] = PointerGetDatum(name->key);
	values[2] = Int32GetDatum(claim->attempt_no);
	set_pointer(values, nulls, 3, claim->request);
	set_pointer(values, nulls, 4, claim->checkpoint);
	set_pointer(values, nulls, 5, claim->state);
	values[6] = TimestampTzGetDatum(claim->first_seen_at);
	values[7] = TimestampTzGetDatum(claim->lease_until);
	set_pointer(values, nulls, 8, claim->last_error);
}

/* ClaimReceiver for the result of a function that returns a set. */
static void
claim_to_tuplestore(const KeyName *name, const StoredClaim *claim, void *arg)
{
	ReturnSetInfo *rsinfo = arg;
	Datum		values[CLAIM_COLUMNS];
	bool		nulls[CLAIM_COLUMNS];

	form_claim(name, claim, values, nulls);
	tuplestore_puttuple(rsinfo->setResult,
						form_row(rsinfo->setDesc, values, nulls,
								 CLAIM_COLUMNS));
}

/* ClaimReceiver for the result of a function that returns one row. */
typedef struct ClaimRow
{
	TupleDesc	desc;
	HeapTuple	tuple;
} ClaimRow;

static void
claim_to_row(const KeyName *name, const StoredClaim *claim, void *arg)
{
	ClaimRow   *row = arg;
	Datum		values[CLAIM_COLUMNS];
	bool		nulls[CLAIM_COLUMNS];

	form_claim(name, claim, values, nulls);
	row->tuple = form_row(row->desc, values, nulls, CLAIM_COLUMNS);
}

/* RowReceiver likewise. */
static void
row_to_tuplestore(Datum *values, bool *isnull, void *arg)
{
	ReturnSetInfo *rsinfo = arg;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/* Functions ---------------------------------------------------------------- */

static Datum
begin(FunctionCallInfo fcinfo, BeginMode mode)
{
	AttemptRequest request;
	AttemptResult result;

	get_request(fcinfo, &request);
	request.mode = mode;
	attempt_begin(&request, &result);
	return attempt_datum(fcinfo, &result);
}

/*
 * idempotent_begin(scope, key, request, fingerprint, retention, first_sent,
 *					lease) returns idempotent_attempt
 *
 * Begins an attempt, waiting while another transaction holds the key.
 * retention and lease are lengths of time, lease at most 30 days.  Errors:
 * 0A000, 25006, IK400, IK409, IK412, IK422, IK423, IK500, 40001, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_begin_1_0);
Datum
idempotent_begin_1_0(PG_FUNCTION_ARGS)
{
	check_may_write("idempotent_begin()");
	return begin(fcinfo, BEGIN_WAIT);
}

/*
 * idempotent_try_begin(as above) returns idempotent_attempt
 *
 * As idempotent_begin, but never waits, and in_progress, mismatch, expired and
 * parked are outcomes.  Errors: 0A000, 25006, IK400, IK500, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_try_begin_1_0);
Datum
idempotent_try_begin_1_0(PG_FUNCTION_ARGS)
{
	check_may_write("idempotent_try_begin()");
	return begin(fcinfo, BEGIN_TRY);
}

/*
 * idempotent_finish(scope, key, response, status, headers, body, attempt,
 *					 retention, body_text) returns jsonb
 *
 * Stores the response with the key and returns it.  attempt is required where
 * the attempt is under lease; retention replaces that of begin.  Errors:
 * 0A000, 25006, IK400, IK410, IK413, IK500, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_finish_1_0);
Datum
idempotent_finish_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;
	Response	response;
	int32		attempt_no;

	check_may_write("idempotent_finish()");
	get_key_name(fcinfo, &name);
	get_response(fcinfo, 2, 8, &response);
	attempt_no = get_count(fcinfo, 6, "attempt");
	attempt_finish(&name, &response, attempt_no, get_retention(fcinfo, 7, 0));
	if (response.response == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(response.response);
}

/*
 * idempotent_release(scope, key, attempt, error, retry_after, reset)
 *	returns boolean
 *
 * Gives the attempt up; false if there is none to give up.  error and
 * retry_after (a length of time of at most 30 days, by default 1, 2, 4 ... 60
 * minutes) are kept for a lease only; reset keeps the attempt number only.
 * Errors: 0A000, 25006, IK400, IK410.
 */
PG_FUNCTION_INFO_V1(idempotent_release_1_0);
Datum
idempotent_release_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;
	ReleaseTerms terms;
	int32		attempt_no;

	check_may_write("idempotent_release()");
	get_key_name(fcinfo, &name);
	attempt_no = get_count(fcinfo, 2, "attempt");
	terms.error = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	terms.retry_after = get_timespan(fcinfo, 4, "retry_after", 0,
									 RULES_MAX_LEASE, -1);
	check_not_null(fcinfo, 5, "reset");
	terms.reset = PG_GETARG_BOOL(5);
	PG_RETURN_BOOL(attempt_release(&name, attempt_no, &terms));
}

/*
 * idempotent_checkpoint(scope, key, attempt, checkpoint, state, lease)
 *	returns timestamptz
 *
 * Records where work under lease has got to and renews the lease, by its own
 * length if lease is null; without a checkpoint, checkpoint and state stay.
 * Errors: 0A000, 25006, IK400, IK410, IK500.
 */
PG_FUNCTION_INFO_V1(idempotent_checkpoint_1_0);
Datum
idempotent_checkpoint_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;
	text	   *checkpoint = NULL;
	int32		attempt_no;
	int64		lease;

	check_may_write("idempotent_checkpoint()");
	get_key_name(fcinfo, &name);
	check_not_null(fcinfo, 2, "attempt");
	attempt_no = get_count(fcinfo, 2, "attempt");
	lease = get_lease(fcinfo, 5);
	if (!PG_ARGISNULL(3))
		checkpoint = get_text(fcinfo, 3, "checkpoint");
	else if (!PG_ARGISNULL(4))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("state cannot be given without a checkpoint")));
	PG_RETURN_TIMESTAMPTZ(lease_checkpoint(&name, attempt_no, checkpoint,
										   get_jsonb(fcinfo, 4), lease));
}

/*
 * idempotent_park(scope, key, attempt, error) returns boolean
 *
 * Ends the attempt of this number because its outcome is not known.  Nobody
 * gets the claim until idempotent_resolve or idempotent_retry.  Errors: 0A000,
 * 25006, IK400, IK410, IK422, IK500.
 */
PG_FUNCTION_INFO_V1(idempotent_park_1_0);
Datum
idempotent_park_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;

	check_may_write("idempotent_park()");
	get_key_name(fcinfo, &name);
	check_not_null(fcinfo, 2, "attempt");
	lease_park(&name, get_count(fcinfo, 2, "attempt"),
			   get_text(fcinfo, 3, "error"));
	PG_RETURN_BOOL(true);
}

/*
 * idempotent_resume(lease, max_keys, scope) returns setof idempotent_claim
 *
 * Takes over claims that are stalled or due, longest due first, each to one
 * caller only.  Holds one lock for each until the transaction ends.
 * Errors: 0A000, 25006, IK400, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_resume_1_0);
Datum
idempotent_resume_1_0(PG_FUNCTION_ARGS)
{
	text	   *scope = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	int32		max_keys;
	int64		lease;

	check_may_write("idempotent_resume()");
	check_not_null(fcinfo, 0, "lease");
	check_not_null(fcinfo, 1, "max_keys");
	lease = get_lease(fcinfo, 0);
	max_keys = get_count(fcinfo, 1, "max_keys");
	InitMaterializedSRF(fcinfo, 0);
	lease_resume(extension_schema(fcinfo), scope, max_keys, lease,
				 claim_to_tuplestore, fcinfo->resultinfo);
	PG_RETURN_NULL();
}

/*
 * idempotent_retry(scope, key, lease) returns idempotent_claim
 *
 * Takes over this claim, parked or not yet due.  For administrators.  Errors:
 * 0A000, 25006, IK400, IK409 (live), IK410 (no claim), IK500, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_retry_1_0);
Datum
idempotent_retry_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;
	ClaimRow	row;

	check_may_write("idempotent_retry()");
	get_key_name(fcinfo, &name);
	check_not_null(fcinfo, 2, "lease");
	row.desc = lookup_rowtype_tupdesc_copy(get_func_rettype(fcinfo->flinfo->fn_oid), -1);
	lease_retry(&name, get_lease(fcinfo, 2), claim_to_row, &row);
	PG_RETURN_DATUM(HeapTupleGetDatum(row.tuple));
}

/*
 * idempotent_resolve(scope, key, reason, response, status, headers, body,
 *					  body_text, retention, attempt, correct) returns text
 *
 * Stores the answer of a key from outside: settled, corrected or recorded.
 * attempt: the number that the caller saw.  correct: a finished key's answer
 * may be replaced.  Errors: 0A000, 25006, IK400, IK409, IK410, IK413, IK422,
 * IK500.
 */
PG_FUNCTION_INFO_V1(idempotent_resolve_1_0);
Datum
idempotent_resolve_1_0(PG_FUNCTION_ARGS)
{
	Resolution	resolution;

	check_may_write("idempotent_resolve()");
	get_key_name(fcinfo, &resolution.name);
	resolution.reason = get_text(fcinfo, 2, "reason");
	get_response(fcinfo, 3, 7, &resolution.response);
	resolution.retention = get_retention(fcinfo, 8, 0);
	resolution.attempt_no = get_count(fcinfo, 9, "attempt");
	check_not_null(fcinfo, 10, "correct");
	resolution.correct = PG_GETARG_BOOL(10);
	PG_RETURN_TEXT_P(cstring_to_text(attempt_resolve(&resolution)));
}

/*
 * idempotent_reconcile(theirs, step, since, until, scope) returns table
 *
 * Compares another service's list of derived keys with what is stored, and
 * returns what does not agree.  since <= first_seen_at < until and scope limit
 * only what counts as missing there.  Errors: 0A000, IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_reconcile_1_0);
Datum
idempotent_reconcile_1_0(PG_FUNCTION_ARGS)
{
	Jsonb	   *theirs;
	TimestampTz until = PG_ARGISNULL(3) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(3);

	check_not_null(fcinfo, 0, "theirs");
	check_not_null(fcinfo, 2, "since");
	theirs = PG_GETARG_JSONB_P(0);
	InitMaterializedSRF(fcinfo, 0);
	attempt_reconcile(extension_schema(fcinfo), theirs,
					  get_text(fcinfo, 1, "step"), PG_GETARG_TIMESTAMPTZ(2),
					  until, PG_ARGISNULL(4) ? NULL : PG_GETARG_TEXT_PP(4),
					  row_to_tuplestore, fcinfo->resultinfo);
	PG_RETURN_NULL();
}

/*
 * idempotent_derive(scope, key, step) returns text
 *
 * The key under which a worker calls another service in this step: 64
 * hexadecimal digits, of which the first 32 are the key's id.  Errors: IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_derive_1_0);
Datum
idempotent_derive_1_0(PG_FUNCTION_ARGS)
{
	char		derived[KEYLOCK_DERIVED_LEN + 1];
	text	   *scope = get_scope(fcinfo);
	text	   *key = get_text(fcinfo, 1, "idempotency key");
	text	   *step = get_text(fcinfo, 2, "step");

	keylock_derive(VARDATA_ANY(scope), VARSIZE_ANY_EXHDR(scope),
				   VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key),
				   VARDATA_ANY(step), VARSIZE_ANY_EXHDR(step), derived);
	PG_RETURN_TEXT_P(cstring_to_text(derived));
}

/*
 * idempotent_backoff(attempt, base, cap, jitter) returns interval
 *
 * base, doubled for each attempt before this one, at most cap; the share
 * jitter of it, 0 to 1, is random.  Errors: IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_backoff_1_0);
Datum
idempotent_backoff_1_0(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"attempt", "base", "cap", "jitter"};
	double		jitter;
	int64		delay;

	for (int i = 0; i < lengthof(names); i++)
		check_not_null(fcinfo, i, names[i]);
	jitter = PG_GETARG_FLOAT8(3);
	if (isnan(jitter) || jitter < 0 || jitter > 1)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("jitter must be between 0 and 1")));
	delay = rules_backoff(get_count(fcinfo, 0, "attempt"),
						  get_timespan(fcinfo, 1, "base", 1, PG_INT64_MAX, 0),
						  get_timespan(fcinfo, 2, "cap", 1, PG_INT64_MAX, 0));
	if (jitter > 0)
		delay -= (int64) (delay * jitter *
						  pg_prng_double(&pg_global_prng_state));
	PG_RETURN_INTERVAL_P(timespan_to_interval(delay));
}

/*
 * idempotent_call(scope, key, command, args, request, retention,
 *				   remember_errors) returns idempotent_attempt
 *
 * Runs the command at most once, as the caller, and stores what it returned:
 * executed, replayed, or with remember_errors failed.  Errors: those of begin,
 * finish and the command; 0A000, 21000, 42601 for what cannot be a command.
 */
PG_FUNCTION_INFO_V1(idempotent_call_1_0);
Datum
idempotent_call_1_0(PG_FUNCTION_ARGS)
{
	AttemptRequest request;
	AttemptResult result;
	text	   *command;
	Jsonb	   *args;

	check_may_write("idempotent_call()");
	memset(&request, 0, sizeof(request));
	get_key_name(fcinfo, &request.name);
	command = get_text(fcinfo, 2, "command");
	args = get_jsonb(fcinfo, 3);
	request.request = get_jsonb(fcinfo, 4);
	if (request.request == NULL)
		request.request = command_as_request(command, args);
	fingerprint_of_jsonb(request.request, &request.fingerprint);
	request.retention = get_retention(fcinfo, 5, settings_retention());
	check_not_null(fcinfo, 6, "remember_errors");
	request.sent = attempt_sent_by_key(request.name.key);
	request.mode = BEGIN_WAIT;
	attempt_call(&request, command, args, PG_GETARG_BOOL(6), &result);
	return attempt_datum(fcinfo, &result);
}

/*
 * idempotent_begin_many(scope, keys, retention) returns setof text
 *
 * Begins an attempt on each key of the batch that is new, waiting for those in
 * flight elsewhere, and returns these, each once and in the order given.
 * Errors: 0A000, 25006, IK400, IK409, IK412, IK422, IK423, IK500, 09000, 40001,
 * 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_begin_many_1_0);
Datum
idempotent_begin_many_1_0(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KeyName    *names;
	Datum	   *keys;
	bool	   *started;
	int64		retention;
	int			n;

	check_may_write("idempotent_begin_many()");
	n = get_key_names(fcinfo, &names, &keys);
	retention = get_retention(fcinfo, 2, settings_retention());
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	started = palloc(sizeof(bool) * (n + 1));
	attempt_begin_many(names, n, retention, started);
	for (int i = 0; i < n; i++)
	{
		bool		isnull = false;

		if (started[i])
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
								 &keys[i], &isnull);
	}
	PG_RETURN_NULL();
}

/*
 * idempotent_finish_many(scope, keys) returns bigint
 *
 * Finishes the attempts that this transaction began on these keys, without a
 * response; returns how many.  Errors: 0A000, 25006, IK400, IK410, IK500,
 * 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_finish_many_1_0);
Datum
idempotent_finish_many_1_0(PG_FUNCTION_ARGS)
{
	KeyName    *names;
	Datum	   *keys;
	int			n;

	check_may_write("idempotent_finish_many()");
	n = get_key_names(fcinfo, &names, &keys);
	PG_RETURN_INT64(attempt_finish_many(names, n));
}

/*
 * idempotent_lookup(scope, key) returns setof idempotent_attempt
 *
 * What begin would meet now, without a request to compare; no row where it
 * would start.  Never waits, never writes.  Errors: 0A000, IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_lookup_1_0);
Datum
idempotent_lookup_1_0(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AttemptRequest request;
	AttemptResult result;

	memset(&request, 0, sizeof(request));
	get_key_name(fcinfo, &request.name);
	request.retention = settings_retention();
	request.sent = attempt_sent_by_key(request.name.key);
	InitMaterializedSRF(fcinfo, 0);
	if (attempt_lookup(&request, &result))
	{
		Datum		values[ATTEMPT_COLUMNS];
		bool		nulls[ATTEMPT_COLUMNS];

		form_attempt(&result, values, nulls);
		tuplestore_puttuple(rsinfo->setResult,
							form_row(rsinfo->setDesc, values, nulls,
									 ATTEMPT_COLUMNS));
	}
	PG_RETURN_NULL();
}

/*
 * idempotent_forget(scope, key) returns boolean
 *
 * Drops a key or claim, waiting for an attempt under way; false if there was
 * none.  Errors: 0A000, 25006, IK400, IK422, IK500, 40001, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_forget_1_0);
Datum
idempotent_forget_1_0(PG_FUNCTION_ARGS)
{
	KeyName		name;

	check_may_write("idempotent_forget()");
	get_key_name(fcinfo, &name);
	PG_RETURN_BOOL(attempt_forget(&name));
}

/*
 * idempotent_forget_scope(scope, max_keys) returns bigint
 *
 * Drops at most max_keys keys and claims of a scope, waiting for attempts under
 * way, and all of its corrections; returns how many keys and claims.  Call it
 * until it returns 0.  Errors: 0A000, 25006, IK400, IK500, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_forget_scope_1_0);
Datum
idempotent_forget_scope_1_0(PG_FUNCTION_ARGS)
{
	text	   *scope;

	check_may_write("idempotent_forget_scope()");
	scope = get_scope(fcinfo);
	check_not_null(fcinfo, 1, "max_keys");
	PG_RETURN_INT64(attempt_forget_scope(extension_schema(fcinfo), scope,
										 get_count(fcinfo, 1, "max_keys")));
}

/*
 * idempotent_prune(max_keys) returns bigint
 *
 * Removes expired keys, at most so many, and returns how many.  Waits for
 * nobody.  Errors: 0A000, 25006, IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_prune_1_0);
Datum
idempotent_prune_1_0(PG_FUNCTION_ARGS)
{
	check_may_write("idempotent_prune()");
	check_not_null(fcinfo, 0, "max_keys");
	PG_RETURN_INT64(attempt_prune(extension_schema(fcinfo),
								  get_count(fcinfo, 0, "max_keys")));
}

/*
 * idempotent_stats() returns record
 *
 * The row of the view idempotency_stats: this database's counters and since
 * when they count; null where shared memory was not to be had.
 */
PG_FUNCTION_INFO_V1(idempotent_stats_1_0);
Datum
idempotent_stats_1_0(PG_FUNCTION_ARGS)
{
	int64		counters[STATS_COUNTERS];
	TimestampTz reset_at;
	Datum		values[STATS_COUNTERS + 1];
	bool		nulls[STATS_COUNTERS + 1];
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row of counters");
	memset(nulls, true, sizeof(nulls));
	if (stats_read(counters, &reset_at))
	{
		memset(nulls, false, sizeof(nulls));
		for (int i = 0; i < STATS_COUNTERS; i++)
			values[i] = Int64GetDatum(counters[i]);
		values[STATS_COUNTERS] = TimestampTzGetDatum(reset_at);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(form_row(BlessTupleDesc(desc),
											   values, nulls,
											   STATS_COUNTERS + 1)));
}

/*
 * idempotent_stats_reset() returns boolean
 *
 * Sets this database's counters to zero; false if there are none.
 */
PG_FUNCTION_INFO_V1(idempotent_stats_reset_1_0);
Datum
idempotent_stats_reset_1_0(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(stats_reset());
}
