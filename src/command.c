/*-------------------------------------------------------------------------
 *
 * command.c
 *	  One SQL statement, run as the caller: arguments from JSON, result to
 *	  JSON.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "command.h"
#include "compat.h"
#include "errors.h"

/*
 * Commands that were run before, so that the next run parses and plans nothing.
 * An entry serves the same text for the same role, as long as names are looked
 * up in the same schemas and PostgreSQL calls its plan valid.
 *
 * We compare the schemas beside the setting: the session's first temporary
 * table puts a schema in front of the path, and neither changes the setting nor
 * invalidates a plan if that schema has been there since an earlier session.
 * PostgreSQL would then analyse the statement anew with the parameters' old
 * types, and a good argument would fail.
 */
#define CACHE_SIZE 64

typedef struct PreparedCommand
{
	MemoryContext context;		/* of this entry; NULL: the entry is free */
	uint32		hash;			/* of the text */
	char	   *text;
	Oid			role;
	char	   *search_path;	/* the setting */
	List	   *schemas;		/* OIDs */
	int			nparams;
	Oid		   *types;
	SPIPlanPtr	plan;
	int			executing;		/* how many executions are under way */
	uint64		last_used;
} PreparedCommand;

static PreparedCommand cache[CACHE_SIZE];
static uint64 cache_uses = 0;

static void
push_text(CompatJsonState *state, JsonbIteratorToken token,
		  const char *string, int len)
{
	JsonbValue	value;

	value.type = string == NULL ? jbvNull : jbvString;
	if (string != NULL)
	{
		value.val.string.val = unconstify(char *, string);
		value.val.string.len = len;
	}
	compat_json_push(state, token, &value);
}

static void
push_jsonb(CompatJsonState *state, JsonbIteratorToken token, Jsonb *jb)
{
	JsonbValue	value;

	value.type = jbvBinary;
	value.val.binary.data = &jb->root;
	value.val.binary.len = VARSIZE(jb) - VARHDRSZ;
	compat_json_push(state, token, &value);
}

static void
check_args(Jsonb *args)
{
	if (args != NULL && (!JB_ROOT_IS_ARRAY(args) || JB_ROOT_IS_SCALAR(args)))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("args must be a JSON array")));
}

/*
 * Parse and analyse the statement for the types of its parameters, as for Parse
 * in the protocol: they follow from where the parameters stand.
 */
static void
find_parameter_types(const char *command, Oid **types, int *n)
{
	List	   *statements = raw_parser(command, RAW_PARSE_DEFAULT);

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("command must be one SQL statement"),
				 errhint("Put several statements into a function or a DO block.")));

	*n = 0;
	*types = palloc0(sizeof(Oid));
	(void) parse_analyze_varparams(linitial_node(RawStmt, statements), command,
								   types, n, NULL);
	for (int i = 0; i < *n; i++)
	{
		if (!OidIsValid((*types)[i]) || (*types)[i] == UNKNOWNOID)
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine the type of parameter $%d", i + 1)));
	}
}

/* The text that a value has where a literal of its type is read. */
static char *
scalar_as_text(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		default:
			elog(ERROR, "unexpected jsonb value type: %d", (int) value->type);
			return NULL;		/* keep compiler quiet */
	}
}

/* A JSON array or object as an array or a composite of the server's. */
static Datum
container_as_type(Jsonb *value, Oid type)
{
	CompatJsonState state = {0};
	Oid			argtypes[1] = {JSONBOID};
	Datum		values[1];
	bool		isnull;
	Datum		result;

	compat_json_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, WJB_KEY, "v", 1);
	push_jsonb(&state, WJB_VALUE, value);
	values[0] = JsonbPGetDatum(compat_json_done(&state, WJB_END_OBJECT));

	if (SPI_execute_with_args(psprintf("SELECT v FROM pg_catalog.jsonb_to_record($1) AS r (v %s)",
									   format_type_be_qualified(type)),
							  1, argtypes, values, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not convert a jsonb value");
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
						   1, &isnull);
	return isnull ? (Datum) 0 : result;
}

/* One element of args as a value of the parameter's type. */
static Datum
bind_value(JsonbValue *value, Oid type)
{
	Oid			base = getBaseType(type);
	Oid			input;
	Oid			ioparam;
	Jsonb	   *jb;

	if (value->type != jbvBinary && base != JSONBOID && base != JSONOID)
	{
		getTypeInputInfo(type, &input, &ioparam);
		return OidInputFunctionCall(input, scalar_as_text(value), ioparam, -1);
	}
	jb = JsonbValueToJsonb(value);
	if (type == JSONBOID)
		return JsonbPGetDatum(jb);
	if (type == JSONOID || value->type != jbvBinary)
	{
		getTypeInputInfo(type, &input, &ioparam);
		return OidInputFunctionCall(input,
									JsonbToCString(NULL, &jb->root, VARSIZE(jb)),
									ioparam, -1);
	}
	return container_as_type(jb, type);
}

/* Bind the elements of args, palloc'd, to the command's parameters. */
static void
bind_parameters(const PreparedCommand *prepared, Jsonb *args, Datum **values,
				char **nulls)
{
	int			n = prepared->nparams;
	int			given = args == NULL ? 0 : JB_ROOT_COUNT(args);

	if (given != n)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("command has %d parameters, but args has %d elements",
						n, given)));

	*values = palloc0(sizeof(Datum) * (n + 1));
	*nulls = palloc0(sizeof(char) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&args->root, i);

		(*nulls)[i] = value->type == jbvNull ? 'n' : ' ';
		if (value->type != jbvNull)
			(*values)[i] = bind_value(value, prepared->types[i]);
	}
}

/* to_jsonb() of a value whose type is known only now. */
static Jsonb *
value_as_jsonb(Datum value, Oid type, int32 typmod)
{
	FmgrInfo	flinfo;
	Const	   *arg = makeNullConst(type, typmod, get_typcollation(type));
	FuncExpr   *call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(arg),
									InvalidOid, InvalidOid,
									COERCE_EXPLICIT_CALL);

	fmgr_info(F_TO_JSONB, &flinfo);
	fmgr_info_set_expr((Node *) call, &flinfo);
	return DatumGetJsonbP(FunctionCall1(&flinfo, value));
}

/* An object has each name once; the others' values must not get lost. */
static void
check_names_differ(TupleDesc desc)
{
	for (int i = 1; i < desc->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(desc, i)->attname);

		for (int j = 0; j < i; j++)
		{
			if (strcmp(name, NameStr(TupleDescAttr(desc, j)->attname)) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("command returned more than one column named \"%s\"", name),
						 errhint("Give each column a name of its own with AS.")));
		}
	}
}

/* The result of the statement just run. */
static Jsonb *
result_as_jsonb(void)
{
	TupleDesc	desc;
	HeapTuple	row;
	bool		isnull;
	Datum		value;

	if (SPI_tuptable == NULL || SPI_tuptable->numvals == 0)
		return NULL;
	if (SPI_tuptable->numvals > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("command returned more than one row"),
				 errhint("Aggregate the rows, for instance with jsonb_agg().")));
	desc = SPI_tuptable->tupdesc;
	row = SPI_tuptable->vals[0];
	if (desc->natts == 1)
	{
		value = SPI_getbinval(row, desc, 1, &isnull);
		return isnull || SPI_gettypeid(desc, 1) == VOIDOID ? NULL :
			value_as_jsonb(value, SPI_gettypeid(desc, 1), -1);
	}
	check_names_differ(desc);
	value = HeapTupleHeaderGetDatum(SPI_returntuple(row, desc));
	return value_as_jsonb(value, RECORDOID, -1);
}

pg_noreturn static void
report_statement(int rc)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("command cannot be run within a function"),
			 errdetail("%s.", rc == SPI_ERROR_TRANSACTION ?
					   "It begins or ends a transaction or a savepoint" :
					   "It copies from or to the client")));
}

/*
 * The schemas in which names are looked up now, the temporary one first.  Where
 * that one stands in the path follows from the setting.  fetch_search_path would
 * create it if the setting begins with it.
 */
static List *
list_schemas(void)
{
	Oid			temp_schema;
	Oid			temp_toast_schema;
	int			n = fetch_search_path_array(NULL, 0);
	Oid		   *schemas = palloc(sizeof(Oid) * (n + 1));
	List	   *result;

	GetTempNamespaceState(&temp_schema, &temp_toast_schema);
	result = list_make1_oid(temp_schema);
	n = fetch_search_path_array(schemas, n);
	for (int i = 0; i < n; i++)
		result = lappend_oid(result, schemas[i]);
	pfree(schemas);
	return result;
}

/* Parse and plan the command into an entry that is free. */
static void
prepare(PreparedCommand *entry, const char *command, uint32 hash)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "idempotency command",
												  ALLOCSET_SMALL_SIZES);
	PreparedCommand made = {0};
	MemoryContext caller;
	Oid		   *types;

	made.context = context;
	made.hash = hash;
	made.role = GetUserId();
	made.text = MemoryContextStrdup(context, command);
	made.search_path = MemoryContextStrdup(context, namespace_search_path);
	caller = MemoryContextSwitchTo(context);
	made.schemas = list_schemas();
	MemoryContextSwitchTo(caller);
	find_parameter_types(command, &types, &made.nparams);
	made.types = MemoryContextAlloc(context, sizeof(Oid) * (made.nparams + 1));
	memcpy(made.types, types, sizeof(Oid) * made.nparams);
	made.plan = SPI_prepare(command, made.nparams, made.types);
	if (made.plan == NULL)
		report_statement(SPI_result);
	*entry = made;
}

/* Keep what has been prepared beyond this call. */
static void
keep(PreparedCommand *entry)
{
	if (SPI_keepplan(entry->plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	MemoryContextSetParent(entry->context, CacheMemoryContext);
}

static void
evict(PreparedCommand *entry)
{
	PreparedCommand old = *entry;

	Assert(entry->executing == 0);
	memset(entry, 0, sizeof(*entry));
	SPI_freeplan(old.plan);
	MemoryContextDelete(old.context);
}

static bool
is_of(const PreparedCommand *entry, const char *command, uint32 hash,
	  const List *schemas)
{
	return entry->context != NULL && entry->hash == hash &&
		entry->role == GetUserId() &&
		strcmp(entry->text, command) == 0 &&
		strcmp(entry->search_path, namespace_search_path) == 0 &&
		equal(entry->schemas, schemas);
}

/* The entry to use for another command: a free one, or the least used. */
static PreparedCommand *
choose_entry(void)
{
	PreparedCommand *chosen = NULL;

	for (int i = 0; i < CACHE_SIZE; i++)
	{
		PreparedCommand *entry = &cache[i];

		if (entry->context == NULL)
			return entry;
		if (entry->executing == 0 &&
			(chosen == NULL || entry->last_used < chosen->last_used))
			chosen = entry;
	}
	return chosen;
}

/*
 * The command, prepared: from the cache, or made now, and kept there unless a
 * command that is being executed has the entry.  A command may call us again;
 * its own plan must not be freed then.
 */
static PreparedCommand *
lookup_command(const char *command, PreparedCommand *uncached)
{
	uint32		hash = DatumGetUInt32(hash_any((const unsigned char *) command,
											   strlen(command)));
	List	   *schemas = list_schemas();
	PreparedCommand *entry = NULL;
	PreparedCommand made;

	for (int i = 0; i < CACHE_SIZE && entry == NULL; i++)
	{
		if (is_of(&cache[i], command, hash, schemas))
			entry = &cache[i];
	}
	if (entry != NULL && SPI_plan_is_valid(entry->plan))
		return entry;

	prepare(&made, command, hash);
	if (entry == NULL)
		entry = choose_entry();
	if (entry == NULL || entry->executing > 0)
	{
		*uncached = made;
		return uncached;
	}
	if (entry->context != NULL)
		evict(entry);
	keep(&made);
	*entry = made;
	return entry;
}

/* Execute the prepared command; its result is SPI's. */
static void
execute(PreparedCommand *prepared, Jsonb *args)
{
	Datum	   *values;
	char	   *nulls;
	int			rc = 0;

	bind_parameters(prepared, args, &values, &nulls);
	prepared->last_used = ++cache_uses;
	prepared->executing++;
	PG_TRY();
	{
		rc = SPI_execute_plan(prepared->plan, values, nulls, false, 2);
	}
	PG_FINALLY();
	{
		prepared->executing--;
	}
	PG_END_TRY();
	if (rc == SPI_ERROR_TRANSACTION || rc == SPI_ERROR_COPY)
		report_statement(rc);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
}

Jsonb *
command_run(const char *command, Jsonb *args)
{
	MemoryContext caller = CurrentMemoryContext;
	PreparedCommand uncached;
	Jsonb	   *result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	check_args(args);
	execute(lookup_command(command, &uncached), args);
	result = result_as_jsonb();
	if (result != NULL)
	{
		Jsonb	   *copy = MemoryContextAlloc(caller, VARSIZE(result));

		memcpy(copy, result, VARSIZE(result));
		result = copy;
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return result;
}

Jsonb *
command_as_request(text *command, Jsonb *args)
{
	CompatJsonState state = {0};

	if (args != NULL)
		return args;
	compat_json_push(&state, WJB_BEGIN_ARRAY, NULL);
	push_text(&state, WJB_ELEM, VARDATA_ANY(command),
			  VARSIZE_ANY_EXHDR(command));
	return compat_json_done(&state, WJB_END_ARRAY);
}

/* Is the error's class none of PostgreSQL's (errcodes.txt), nor ours? */
static bool
is_class_of_users(const char *state)
{
	static const char *const others[] = {
		"00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z",
		"10", "20", "21", "22", "23", "24", "25", "26", "27", "28", "2B", "2D",
		"2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54",
		"55", "57", "58", "72", "F0", "HV", "IK", "P0", "XX"
	};

	for (int i = 0; i < lengthof(others); i++)
	{
		if (strncmp(state, others[i], 2) == 0)
			return false;
	}
	return true;
}

/*
 * The classes of errors that would come again on a retry: of data (22), of
 * constraints (23), of external routines (38, 39), WITH CHECK OPTION (44),
 * raised by PL/pgSQL (P0), and the user's own.  In the stricter isolation
 * levels a unique or exclusion violation may be a serialization failure, which
 * the retry settles.
 */
bool
command_error_is_lasting(int sqlerrcode)
{
	static const char *const lasting[] = {"22", "23", "38", "39", "44", "P0"};
	const char *state = unpack_sql_state(sqlerrcode);

	if (IsolationUsesXactSnapshot() &&
		(sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
		 sqlerrcode == ERRCODE_EXCLUSION_VIOLATION))
		return false;
	for (int i = 0; i < lengthof(lasting); i++)
	{
		if (strncmp(state, lasting[i], 2) == 0)
			return true;
	}
	return is_class_of_users(state);
}

Jsonb *
command_error_as_response(const ErrorData *edata)
{
	const char *const fields[][2] = {
		{"sqlstate", unpack_sql_state(edata->sqlerrcode)},
		{"message", edata->message},
		{"detail", edata->detail},
		{"hint", edata->hint},
		{"constraint", edata->constraint_name},
	};
	CompatJsonState state = {0};

	compat_json_push(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, WJB_KEY, "error", strlen("error"));
	compat_json_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < lengthof(fields); i++)
	{
		push_text(&state, WJB_KEY, fields[i][0], strlen(fields[i][0]));
		push_text(&state, WJB_VALUE, fields[i][1],
				  fields[i][1] == NULL ? 0 : strlen(fields[i][1]));
	}
	compat_json_push(&state, WJB_END_OBJECT, NULL);
	return compat_json_done(&state, WJB_END_OBJECT);
}
