/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  The front door: module, settings, and the functions that SQL calls.
 *
 * The protocol
 * ============
 *
 * In one transaction.  begin takes the key's lock, an advisory lock of a
 * private class (keylock.h), exclusive and of the transaction, and then reads
 * the key with a snapshot that is taken after the lock.  A key that is
 * finished is replayed, and the lock is given back at once.  Otherwise the
 * lock is kept to the end of the transaction, so whoever comes second waits
 * there (begin) or is told so (try_begin).  begin writes nothing; finish
 * inserts the one row, under the lock.  Hence a crash or a rollback leaves no
 * trace, and a waiter that gets the lock either sees the row that the last
 * holder committed or is the executor.
 *
 * Under lease.  begin also writes a claim, which the application commits; the
 * lock goes with that commit and the claim stays.  Whoever writes to a claim
 * (checkpoint, finish, release, and the begin or resume that takes it over)
 * takes the lock, reads the claim with a newer snapshot and compares the
 * attempt's number, which each takeover raises.  finish deletes the claim and
 * inserts the key.
 *
 * Order of locks: the key's lock, then the tables' (AccessShare to read,
 * RowExclusive to write), then rows.  prune takes no key's lock: it passes over keys
 * whose lock is held and rows that are locked.  Two transactions that begin
 * two keys in opposite order deadlock as two UPDATEs would, and one fails.
 *
 * Isolation.  READ COMMITTED sees what the last holder committed anyhow.  In
 * REPEATABLE READ and SERIALIZABLE the transaction's snapshot may be older
 * than the lock, so the tables, and they alone, are read with the latest one,
 * and a key's row as it is now: a row that is written and not committed is a
 * large batch's, which does not lock its keys (attempt_many.h), and is waited
 * for.  What a row outside of this protocol does to it is a 40001.
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
#include "utils/typcache.h"

#include "src/attempt.h"
#include "src/attempt_call.h"
#include "src/attempt_many.h"
#include "src/command.h"
#include "src/compat.h"
#include "src/errors.h"
#include "src/keytime.h"
#include "src/stats.h"
#include "src/timespan.h"

IDEMPOTENCY_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

/* A scope is the application's own text; this only stops mistakes. */
#define MAX_SCOPE_LENGTH 1024

/* How far a client's clock may be ahead of ours. */
#define MAX_CLOCK_SKEW USECS_PER_MINUTE

/*
 * idempotency.retention: how long after its first begin a finished key is
 * honoured.  An interval, or a number of seconds.
 */
static char *retention_setting = NULL;
static int64 retention_usecs = USECS_PER_DAY;

/*
 * idempotency.max_key_length: in characters.  255 is what Stripe and most
 * others allow; Toss Payments allows 300.
 */
static int	max_key_length = 255;

/*
 * idempotency.max_response_size: in bytes of response, headers and body
 * together, before compression.  0: no limit.
 */
static int	max_response_size = 0;

/*
 * idempotency.key_time: read the time inside a UUIDv7 or ULID key, so that a
 * request older than its retention is refused even after its key was pruned.
 */
static bool key_time = false;

static bool
check_retention(char **newval, void **extra, GucSource source)
{
	int64		usecs;
	int64	   *parsed;

	if (!timespan_from_text(*newval, &usecs) || usecs <= 0)
	{
		GUC_check_errdetail("\"%s\" must be an interval greater than zero, such as '24 hours', or a number of seconds.",
							"idempotency.retention");
		return false;
	}
	parsed = guc_malloc(LOG, sizeof(int64));
	if (parsed == NULL)
		return false;
	*parsed = usecs;
	*extra = parsed;
	return true;
}

static void
assign_retention(const char *newval, void *extra)
{
	retention_usecs = *(int64 *) extra;
}

void
_PG_init(void)
{
	DefineCustomStringVariable("idempotency.retention",
							   "How long after its first begin a finished idempotency key is honoured.",
							   "An interval, or a number of seconds.",
							   &retention_setting, "24 hours",
							   PGC_USERSET, 0,
							   check_retention, assign_retention, NULL);
	DefineCustomIntVariable("idempotency.max_key_length",
							"Longest idempotency key that is accepted, in characters.",
							NULL,
							&max_key_length, 255, 1, 65535,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("idempotency.max_response_size",
							"Largest response that is stored with an idempotency key.",
							"Response, headers and body together, before compression; 0 means no limit.",
							&max_response_size, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomBoolVariable("idempotency.key_time",
							 "Reads the time inside UUIDv7 and ULID idempotency keys.",
							 "Requests older than their retention are refused even after the key was pruned.",
							 &key_time, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("idempotency");
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
refuse_null(FunctionCallInfo fcinfo, int arg, const char *what)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s must not be null", what)));
}

/* A name has 1 to max characters; NULL stands for null. */
static void
check_name(text *name, const char *what, int max)
{
	int			len = name == NULL ? 0 : VARSIZE_ANY_EXHDR(name);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("idempotency %s must not be null or empty", what)));
	if (len > max && pg_mbstrlen_with_len(VARDATA_ANY(name), len) > max)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("idempotency %s is too long", what),
				 errdetail("It must have at most %d characters.", max)));
}

static text *
get_name(FunctionCallInfo fcinfo, int arg, const char *what, int max)
{
	text	   *name = PG_ARGISNULL(arg) ? NULL : PG_GETARG_TEXT_PP(arg);

	check_name(name, what, max);
	return name;
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

/* Arguments 0 and 1 of every function on a key. */
static void
get_key_name(FunctionCallInfo fcinfo, KeyName *name)
{
	text	   *scope = get_name(fcinfo, 0, "scope", MAX_SCOPE_LENGTH);
	text	   *key = get_name(fcinfo, 1, "key", max_key_length);

	set_key_name(name, extension_schema(fcinfo), scope, key);
}

/* The same for a batch; also the keys themselves, in the order given. */
static int
get_key_names(FunctionCallInfo fcinfo, KeyName **names, Datum **keys)
{
	text	   *scope = get_name(fcinfo, 0, "scope", MAX_SCOPE_LENGTH);
	Oid			schema = extension_schema(fcinfo);
	bool	   *nulls;
	int			n;

	refuse_null(fcinfo, 1, "keys");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false,
					  TYPALIGN_INT, keys, &nulls, &n);
	*names = palloc(sizeof(KeyName) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		text	   *key = nulls[i] ? NULL : DatumGetTextPP((*keys)[i]);

		check_name(key, "key", max_key_length);
		set_key_name(&(*names)[i], schema, scope, key);
	}
	return n;
}

/* A length of time of at least min microseconds; missing if it is null. */
static int64
get_timespan(FunctionCallInfo fcinfo, int arg, const char *what, int64 min,
			 int64 missing)
{
	int64		usecs;

	if (PG_ARGISNULL(arg))
		return missing;
	if (!timespan_from_interval(PG_GETARG_INTERVAL_P(arg), &usecs) ||
		usecs < min)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("%s is out of range", what),
				 errdetail(min > 0 ? "It must be finite and greater than zero."
						   : "It must be finite and not negative.")));
	return usecs;
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
refuse_future(TimestampTz sent_at)
{
	if (TIMESTAMP_NOT_FINITE(sent_at) ||
		sent_at - MAX_CLOCK_SKEW > GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("idempotency key or request is from the future"),
				 errdetail("The time inside the key, or first_sent, is more than a minute ahead of the server's clock, or infinite.")));
}

/* The time inside a key, if there is one and it is to be believed. */
static bool
get_key_time(const text *key, TimestampTz *made_at)
{
	if (!key_time || !keytime_of_key(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key),
									 made_at))
		return false;
	refuse_future(*made_at);
	return true;
}

/* When the client first sent the request, as far as key and caller tell. */
static void
get_sent_at(AttemptRequest *request, bool given, TimestampTz first_sent)
{
	request->has_sent_at = given;
	request->sent_at = first_sent;
	if (given)
		refuse_future(first_sent);
	else
		request->has_sent_at = get_key_time(request->name.key,
											&request->sent_at);
}

/* The same for each of a batch: infinite where it is not known; NULL: none is. */
static TimestampTz *
get_sent_at_many(const KeyName *names, int n)
{
	TimestampTz *sent_at;

	if (!key_time)
		return NULL;
	sent_at = palloc(sizeof(TimestampTz) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		if (!get_key_time(names[i].key, &sent_at[i]))
			sent_at[i] = DT_NOEND;
	}
	return sent_at;
}

static void
get_request(FunctionCallInfo fcinfo, AttemptRequest *request)
{
	memset(request, 0, sizeof(*request));
	get_key_name(fcinfo, &request->name);
	get_fingerprint(fcinfo, request);
	request->retention = get_timespan(fcinfo, 4, "retention", 1,
									  retention_usecs);
	get_sent_at(request, !PG_ARGISNULL(5),
				PG_ARGISNULL(5) ? 0 : PG_GETARG_TIMESTAMPTZ(5));
	request->lease = get_timespan(fcinfo, 6, "lease", 1, 0);
}

static void
get_response(FunctionCallInfo fcinfo, Response *response)
{
	memset(response, 0, sizeof(*response));
	response->response = get_jsonb(fcinfo, 2);
	response->has_status = !PG_ARGISNULL(3);
	response->status = response->has_status ? PG_GETARG_INT32(3) : 0;
	response->headers = get_jsonb(fcinfo, 4);
	response->body = PG_ARGISNULL(5) ? NULL : PG_GETARG_BYTEA_PP(5);

	attempt_check_size(response, max_response_size);
}

/* Results ------------------------------------------------------------------ */

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

#define ATTEMPT_COLUMNS 13

static void
form_attempt(const AttemptResult *result, Datum *values, bool *nulls)
{
	const Response *response = &result->response;

	memset(nulls, 0, ATTEMPT_COLUMNS * sizeof(bool));
	values[0] = CStringGetTextDatum(outcome_name(result->outcome));
	values[1] = BoolGetDatum(result->replayed);
	set_int(values, nulls, 2, result->attempt);
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

/* Functions ---------------------------------------------------------------- */

static Datum
begin(FunctionCallInfo fcinfo, bool wait)
{
	AttemptRequest request;
	AttemptResult result;

	get_request(fcinfo, &request);
	request.wait = wait;
	attempt_begin(&request, &result);
	return attempt_datum(fcinfo, &result);
}

/*
 * idempotent_begin(scope, key, request, fingerprint, retention, first_sent,
 *					lease) returns idempotent_attempt
 *
 * Begins an attempt, waiting while another transaction holds the key.
 * Errors: 25006, IK400, IK409, IK412, IK422, IK500, 40001, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_begin);
Datum
idempotent_begin(PG_FUNCTION_ARGS)
{
	check_may_write("idempotent_begin()");
	return begin(fcinfo, true);
}

/*
 * idempotent_try_begin(as above) returns idempotent_attempt
 *
 * As idempotent_begin, but never waits, and in_progress, mismatch and expired
 * are outcomes.  Errors: 25006, IK400, IK500, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_try_begin);
Datum
idempotent_try_begin(PG_FUNCTION_ARGS)
{
	check_may_write("idempotent_try_begin()");
	return begin(fcinfo, false);
}

/*
 * idempotent_finish(scope, key, response, status, headers, body, attempt)
 *	returns jsonb
 *
 * Stores the response with the key and returns it.  attempt is required where
 * the attempt is under lease.  Errors: 25006, IK400, IK410, IK413, IK500,
 * 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_finish);
Datum
idempotent_finish(PG_FUNCTION_ARGS)
{
	KeyName		name;
	Response	response;
	int32		attempt;

	check_may_write("idempotent_finish()");
	get_key_name(fcinfo, &name);
	get_response(fcinfo, &response);
	attempt = get_count(fcinfo, 6, "attempt");
	attempt_finish(&name, &response, attempt);
	if (response.response == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(response.response);
}

/*
 * idempotent_release(scope, key, attempt, error, retry_after)
 *	returns boolean
 *
 * Gives the attempt up; false if there is none to give up.  error and
 * retry_after (by default 1, 2, 4 ... 60 minutes) are kept for a lease only.
 * Errors: 25006, IK400, IK410.
 */
PG_FUNCTION_INFO_V1(idempotent_release);
Datum
idempotent_release(PG_FUNCTION_ARGS)
{
	KeyName		name;
	int32		attempt;
	text	   *error;
	int64		retry_after;

	check_may_write("idempotent_release()");
	get_key_name(fcinfo, &name);
	attempt = get_count(fcinfo, 2, "attempt");
	error = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	retry_after = get_timespan(fcinfo, 4, "retry_after", 0, -1);
	PG_RETURN_BOOL(attempt_release(&name, attempt, error, retry_after));
}

/*
 * idempotent_checkpoint(scope, key, attempt, checkpoint, state, lease)
 *	returns timestamptz
 *
 * Records where work under lease has got to and renews the lease, by its own
 * length if lease is null.  Errors: 25006, IK400, IK410, IK500.
 */
PG_FUNCTION_INFO_V1(idempotent_checkpoint);
Datum
idempotent_checkpoint(PG_FUNCTION_ARGS)
{
	KeyName		name;
	int32		attempt;
	int64		lease;

	check_may_write("idempotent_checkpoint()");
	get_key_name(fcinfo, &name);
	refuse_null(fcinfo, 2, "attempt");
	attempt = get_count(fcinfo, 2, "attempt");
	lease = get_timespan(fcinfo, 5, "lease", 1, 0);
	PG_RETURN_TIMESTAMPTZ(attempt_checkpoint(&name, attempt,
											 get_text(fcinfo, 3, "checkpoint"),
											 get_jsonb(fcinfo, 4), lease));
}

#define CLAIM_COLUMNS 8

static void
put_claim(const KeyName *name, const StoredClaim *claim, void *arg)
{
	ReturnSetInfo *rsinfo = arg;
	Datum		values[CLAIM_COLUMNS];
	bool		nulls[CLAIM_COLUMNS] = {false};

	values[0] = PointerGetDatum(name->scope);
	values[1] = PointerGetDatum(name->key);
	values[2] = Int32GetDatum(claim->attempt);
	set_pointer(values, nulls, 3, claim->request);
	set_pointer(values, nulls, 4, claim->checkpoint);
	set_pointer(values, nulls, 5, claim->state);
	values[6] = TimestampTzGetDatum(claim->first_seen_at);
	values[7] = TimestampTzGetDatum(claim->lease_until);
	tuplestore_puttuple(rsinfo->setResult,
						form_row(rsinfo->setDesc, values, nulls,
								 CLAIM_COLUMNS));
}

/*
 * idempotent_resume(lease, max_keys, scope) returns setof idempotent_claim
 *
 * Takes over claims that are stalled or due, longest due first, each to one
 * caller only.  Holds one lock for each until the transaction ends.
 * Errors: 25006, IK400, 40001.
 */
PG_FUNCTION_INFO_V1(idempotent_resume);
Datum
idempotent_resume(PG_FUNCTION_ARGS)
{
	text	   *scope = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	int32		max_keys;
	int64		lease;

	check_may_write("idempotent_resume()");
	refuse_null(fcinfo, 0, "lease");
	refuse_null(fcinfo, 1, "max_keys");
	lease = get_timespan(fcinfo, 0, "lease", 1, 0);
	max_keys = get_count(fcinfo, 1, "max_keys");
	InitMaterializedSRF(fcinfo, 0);
	attempt_resume(extension_schema(fcinfo), scope, max_keys, lease,
				   put_claim, fcinfo->resultinfo);
	PG_RETURN_NULL();
}

/*
 * idempotent_backoff(attempt, base, cap, jitter) returns interval
 *
 * base, doubled for each attempt before this one, at most cap; the share
 * jitter of it, 0 to 1, is random.  Errors: IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_backoff);
Datum
idempotent_backoff(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"attempt", "base", "cap", "jitter"};
	double		jitter;
	int64		delay;

	for (int i = 0; i < lengthof(names); i++)
		refuse_null(fcinfo, i, names[i]);
	jitter = PG_GETARG_FLOAT8(3);
	if (isnan(jitter) || jitter < 0 || jitter > 1)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("jitter must be between 0 and 1")));
	delay = attempt_backoff(get_count(fcinfo, 0, "attempt"),
							get_timespan(fcinfo, 1, "base", 1, 0),
							get_timespan(fcinfo, 2, "cap", 1, 0));
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
PG_FUNCTION_INFO_V1(idempotent_call);
Datum
idempotent_call(PG_FUNCTION_ARGS)
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
	request.retention = get_timespan(fcinfo, 5, "retention", 1,
									 retention_usecs);
	refuse_null(fcinfo, 6, "remember_errors");
	get_sent_at(&request, false, 0);
	request.wait = true;
	attempt_call(&request, command, args, PG_GETARG_BOOL(6),
				 max_response_size, &result);
	return attempt_datum(fcinfo, &result);
}

/* Which of the arranged names is this key's?  It is there. */
static int
find_name(const KeyName *names, int n, const KeyId *id)
{
	int			low = 0;

	while (n > 1)
	{
		int			half = n / 2;

		if (memcmp(&names[low + half].id, id, sizeof(*id)) <= 0)
			low += half;
		n -= half;
	}
	return low;
}

/*
 * idempotent_begin_many(scope, keys, retention) returns setof text
 *
 * Begins an attempt on each key of the batch that is new, waiting for those in
 * flight elsewhere, and returns these, each once and in the order given.
 * Errors: 25006, IK400, IK409, IK412, IK500, 09000, 40001, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_begin_many);
Datum
idempotent_begin_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KeyName    *given;
	KeyName    *names;
	Datum	   *keys;
	bool	   *started;
	int64		retention;
	int			n;
	int			distinct;

	check_may_write("idempotent_begin_many()");
	n = get_key_names(fcinfo, &given, &keys);
	retention = get_timespan(fcinfo, 2, "retention", 1, retention_usecs);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	names = palloc(sizeof(KeyName) * (n + 1));
	memcpy(names, given, sizeof(KeyName) * n);
	distinct = attempt_many_arrange(names, n);
	started = palloc(sizeof(bool) * (distinct + 1));
	attempt_begin_many(names, distinct, get_sent_at_many(names, distinct),
					   retention, started);

	for (int i = 0; i < n; i++)
	{
		int			at = find_name(names, distinct, &given[i].id);
		bool		isnull = false;

		if (started[at])
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
								 &keys[i], &isnull);
		started[at] = false;	/* once */
	}
	PG_RETURN_NULL();
}

/*
 * idempotent_finish_many(scope, keys) returns bigint
 *
 * Finishes the attempts that this transaction began on these keys, without a
 * response; returns how many.  Errors: 25006, IK400, IK500.
 */
PG_FUNCTION_INFO_V1(idempotent_finish_many);
Datum
idempotent_finish_many(PG_FUNCTION_ARGS)
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
 * would start.  Never waits, never writes.  Errors: IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_lookup);
Datum
idempotent_lookup(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	AttemptRequest request;
	AttemptResult result;

	memset(&request, 0, sizeof(request));
	get_key_name(fcinfo, &request.name);
	request.retention = retention_usecs;
	get_sent_at(&request, false, 0);
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
 * none.  Errors: 25006, IK400, IK500, 55P03.
 */
PG_FUNCTION_INFO_V1(idempotent_forget);
Datum
idempotent_forget(PG_FUNCTION_ARGS)
{
	KeyName		name;

	check_may_write("idempotent_forget()");
	get_key_name(fcinfo, &name);
	PG_RETURN_BOOL(attempt_forget(&name));
}

/*
 * idempotent_prune(max_keys) returns bigint
 *
 * Removes expired keys, at most so many, and returns how many.  Waits for
 * nobody.  Errors: 25006, IK400.
 */
PG_FUNCTION_INFO_V1(idempotent_prune);
Datum
idempotent_prune(PG_FUNCTION_ARGS)
{
	int64		removed;

	check_may_write("idempotent_prune()");
	refuse_null(fcinfo, 0, "max_keys");
	removed = store_prune(extension_schema(fcinfo),
						  get_count(fcinfo, 0, "max_keys"));
	stats_count(STATS_PRUNED, removed);
	PG_RETURN_INT64(removed);
}

/*
 * idempotent_stats() returns record
 *
 * The row of the view idempotency_stats: this database's counters and since
 * when they count; null where shared memory was not to be had.
 */
PG_FUNCTION_INFO_V1(idempotent_stats);
Datum
idempotent_stats(PG_FUNCTION_ARGS)
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
PG_FUNCTION_INFO_V1(idempotent_stats_reset);
Datum
idempotent_stats_reset(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(stats_reset());
}
