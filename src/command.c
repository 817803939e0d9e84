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
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#include "command.h"
#include "errors.h"

/* A statement's parameters, as its analysis found them. */
typedef struct Parameters
{
	int			n;
	Oid		   *types;
	Datum	   *values;
	char	   *nulls;
} Parameters;

static void
push_text(JsonbParseState **state, JsonbIteratorToken token,
		  const char *text, int len)
{
	JsonbValue	value;

	value.type = text == NULL ? jbvNull : jbvString;
	if (text != NULL)
	{
		value.val.string.val = unconstify(char *, text);
		value.val.string.len = len;
	}
	(void) pushJsonbValue(state, token, &value);
}

static void
push_jsonb(JsonbParseState **state, JsonbIteratorToken token, Jsonb *jb)
{
	JsonbValue	value;

	value.type = jbvBinary;
	value.val.binary.data = &jb->root;
	value.val.binary.len = VARSIZE(jb) - VARHDRSZ;
	(void) pushJsonbValue(state, token, &value);
}

/* What a JSON value's type says of a parameter that the statement leaves open. */
static Oid
type_of_value(const JsonbValue *value)
{
	Datum		number;

	if (value->type == jbvBool)
		return BOOLOID;
	if (value->type != jbvNumeric)
		return InvalidOid;
	number = NumericGetDatum(value->val.numeric);
	if (strpbrk(DatumGetCString(DirectFunctionCall1(numeric_out, number)), ".N") != NULL ||
		!DatumGetBool(DirectFunctionCall2(numeric_lt,
										  DirectFunctionCall1(numeric_abs, number),
										  DirectFunctionCall1(int8_numeric, Int64GetDatum(PG_INT32_MAX)))))
		return NUMERICOID;
	return INT4OID;
}

static void
refuse_args(Jsonb *args)
{
	if (args != NULL && (!JB_ROOT_IS_ARRAY(args) || JB_ROOT_IS_SCALAR(args)))
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("args must be a JSON array")));
}

static void
find_parameters(const char *command, Jsonb *args, bool by_value,
				Parameters *params)
{
	List	   *statements = raw_parser(command, RAW_PARSE_DEFAULT);

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("command must be one SQL statement"),
				 errhint("Put several statements into a function or a DO block.")));

	params->n = args == NULL ? 0 : JB_ROOT_COUNT(args);
	params->types = palloc0(sizeof(Oid) * (params->n + 1));
	for (int i = 0; by_value && i < params->n; i++)
		params->types[i] = type_of_value(getIthJsonbValueFromContainer(&args->root, i));

	/* As for Parse on the wire: types follow from where parameters stand. */
	(void) parse_analyze_varparams(linitial_node(RawStmt, statements), command,
								   &params->types, &params->n, NULL);

	/* What args has beyond the statement's last parameter is none. */
	while (params->n > 0 && !OidIsValid(params->types[params->n - 1]))
		params->n--;
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
	JsonbParseState *state = NULL;
	Oid			argtypes[1] = {JSONBOID};
	Datum		values[1];
	bool		isnull;
	Datum		result;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, WJB_KEY, "v", 1);
	push_jsonb(&state, WJB_VALUE, value);
	values[0] = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));

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

static void
bind_parameters(Parameters *params, Jsonb *args)
{
	int			given = args == NULL ? 0 : JB_ROOT_COUNT(args);

	if (given != params->n)
		ereport(ERROR,
				(errcode(ERRCODE_IDEMPOTENCY_BAD_REQUEST),
				 errmsg("command has %d parameters, but args has %d elements",
						params->n, given)));

	params->values = palloc0(sizeof(Datum) * (params->n + 1));
	params->nulls = palloc0(sizeof(char) * (params->n + 1));
	for (int i = 0; i < params->n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&args->root, i);

		if (!OidIsValid(params->types[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine the type of parameter $%d", i + 1)));
		params->nulls[i] = value->type == jbvNull ? 'n' : ' ';
		if (value->type != jbvNull)
			params->values[i] = bind_value(value, params->types[i]);
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
refuse_same_names(TupleDesc desc)
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
	refuse_same_names(desc);
	value = HeapTupleHeaderGetDatum(SPI_returntuple(row, desc));
	return value_as_jsonb(value, RECORDOID, -1);
}

static void
refuse_statement(int rc)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("command cannot be run within a function"),
			 errdetail("%s.", rc == SPI_ERROR_TRANSACTION ?
					   "It begins or ends a transaction or a savepoint" :
					   "It copies from or to the client")));
}

bool
command_has_typed_args(Jsonb *args)
{
	refuse_args(args);
	for (int i = 0; args != NULL && i < JB_ROOT_COUNT(args); i++)
	{
		if (OidIsValid(type_of_value(getIthJsonbValueFromContainer(&args->root, i))))
			return true;
	}
	return false;
}

void
command_check(const char *command, Jsonb *args)
{
	Parameters	params;

	refuse_args(args);
	find_parameters(command, args, false, &params);
}

Jsonb *
command_run(const char *command, Jsonb *args, bool by_value)
{
	MemoryContext caller = CurrentMemoryContext;
	Parameters	params;
	SPIPlanPtr	plan;
	Jsonb	   *result;
	int			rc;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	refuse_args(args);
	find_parameters(command, args, by_value, &params);
	bind_parameters(&params, args);
	plan = SPI_prepare(command, params.n, params.types);
	if (plan == NULL)
		refuse_statement(SPI_result);
	rc = SPI_execute_plan(plan, params.values, params.nulls, false, 2);
	if (rc == SPI_ERROR_TRANSACTION || rc == SPI_ERROR_COPY)
		refuse_statement(rc);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));

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
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	push_text(&state, WJB_ELEM, VARDATA_ANY(command),
			  VARSIZE_ANY_EXHDR(command));
	if (args != NULL)
		push_jsonb(&state, WJB_ELEM, args);
	else
		push_text(&state, WJB_ELEM, NULL, 0);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/*
 * By class.  The same statement on the same data raises them again, unless
 * the connection (08), a concurrent transaction (40), the server's resources
 * (53), an object in use (55), an operator or a time-out (57), the system
 * (58), a snapshot that is too old (72), a foreign server (HV), a bug (XX), or
 * another attempt on a key (IK) was the reason.
 */
bool
command_error_is_lasting(int sqlerrcode)
{
	static const char *const passing[] =
	{"08", "40", "53", "55", "57", "58", "72", "HV", "XX", "IK"};
	const char *state = unpack_sql_state(sqlerrcode);

	for (int i = 0; i < lengthof(passing); i++)
	{
		if (strncmp(state, passing[i], 2) == 0)
			return false;
	}
	return true;
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
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, WJB_KEY, "error", strlen("error"));
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < lengthof(fields); i++)
	{
		push_text(&state, WJB_KEY, fields[i][0], strlen(fields[i][0]));
		push_text(&state, WJB_VALUE, fields[i][1],
				  fields[i][1] == NULL ? 0 : strlen(fields[i][1]));
	}
	(void) pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
