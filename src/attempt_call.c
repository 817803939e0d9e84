/*-------------------------------------------------------------------------
 *
 * attempt_call.c
 *	  An attempt whose work is one SQL statement: begin, run, finish.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "attempt_call.h"
#include "command.h"
#include "errors.h"
#include "stats.h"

/* The work's own subtransaction, of which only an error undoes anything. */
typedef struct Work
{
	MemoryContext context;
	ResourceOwner owner;
} Work;

static void
work_begin(Work *work)
{
	work->context = CurrentMemoryContext;
	work->owner = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(work->context);
}

static void
work_keep(Work *work)
{
	ReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(work->context);
	CurrentResourceOwner = work->owner;
}

/* To be called where the work's error was caught; returns it. */
static ErrorData *
work_undo(Work *work)
{
	ErrorData  *edata;

	MemoryContextSwitchTo(work->context);
	edata = CopyErrorData();
	FlushErrorState();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(work->context);
	CurrentResourceOwner = work->owner;
	return edata;
}

/*
 * Types follow from the statement.  Where a function's name alone does not
 * tell which one is meant (charge($1, $2): PostgreSQL has one of that name for
 * "char"), the numbers and booleans among the arguments decide.
 */
static bool
needs_types_of_values(const char *command, Jsonb *args)
{
	Work		work;
	volatile bool ambiguous = false;

	if (!command_has_typed_args(args))
		return false;
	work_begin(&work);
	PG_TRY();
	{
		command_check(command, args);
		work_keep(&work);
	}
	PG_CATCH();
	{
		ErrorData  *edata = work_undo(&work);

		if (edata->sqlerrcode != ERRCODE_AMBIGUOUS_FUNCTION)
			ReThrowError(edata);
		ambiguous = true;
	}
	PG_END_TRY();
	return ambiguous;
}

static Jsonb *
run(const char *command, Jsonb *args)
{
	return command_run(command, args, needs_types_of_values(command, args));
}

/* Run the command; true if it failed in a way that is worth remembering. */
static bool
run_remembering(const char *command, Jsonb *args, Response *response)
{
	Work		work;
	volatile bool failed = false;

	work_begin(&work);
	PG_TRY();
	{
		response->response = run(command, args);
		work_keep(&work);
	}
	PG_CATCH();
	{
		ErrorData  *edata = work_undo(&work);

		if (!command_error_is_lasting(edata->sqlerrcode))
			ReThrowError(edata);
		response->response = command_error_as_response(edata);
		failed = true;
	}
	PG_END_TRY();
	return failed;
}

/*
 * A claim whose lease has ended has been worked on, up to its checkpoint: to
 * run the whole command would do that part twice.
 */
static void
refuse_claim(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_IN_PROGRESS),
			 errmsg("idempotency key belongs to work under lease"),
			 errdetail("The lease has ended, and a part of the work may have been done."),
			 errhint("Go on from its checkpoint with idempotent_begin or idempotent_resume.")));
}

void
attempt_call(const AttemptRequest *request, text *command, Jsonb *args,
			 bool remember_errors, AttemptResult *result)
{
	Response	response;
	char	   *sql = text_to_cstring(command);

	attempt_begin(request, result);
	if (result->outcome == OUTCOME_REPLAYED)
	{
		if (result->response.failed)
			result->outcome = OUTCOME_FAILED;
		return;
	}
	if (result->outcome == OUTCOME_RECOVERED)
		refuse_claim();

	memset(&response, 0, sizeof(response));
	if (remember_errors)
		response.failed = run_remembering(sql, args, &response);
	else
		response.response = run(sql, args);

	attempt_check_size(&response);
	attempt_finish(&request->name, &response, result->attempt_no, 0);
	stats_count(response.failed ? STATS_FAILED : STATS_EXECUTED, 1);
	result->outcome = response.failed ? OUTCOME_FAILED : OUTCOME_EXECUTED;
	result->response = response;
	result->finished_at = GetCurrentTimestamp();
}
