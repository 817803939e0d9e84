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

/* The work's own subtransaction, which is rolled back only on error. */
typedef struct Subxact
{
	MemoryContext context;
	ResourceOwner owner;
} Subxact;

static void
begin_subxact(Subxact *subxact)
{
	subxact->context = CurrentMemoryContext;
	subxact->owner = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(subxact->context);
}

static void
commit_subxact(Subxact *subxact)
{
	ReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(subxact->context);
	CurrentResourceOwner = subxact->owner;
}

/* To be called where the work's error was caught; returns it. */
static ErrorData *
abort_subxact(Subxact *subxact)
{
	ErrorData  *edata;

	MemoryContextSwitchTo(subxact->context);
	edata = CopyErrorData();
	FlushErrorState();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(subxact->context);
	CurrentResourceOwner = subxact->owner;
	return edata;
}

/* Run the command; true if it failed in a way that is worth remembering. */
static bool
run_remembering(const char *command, Jsonb *args, Response *response)
{
	Subxact		work;
	volatile bool failed = false;

	begin_subxact(&work);
	PG_TRY();
	{
		response->response = command_run(command, args);
		commit_subxact(&work);
	}
	PG_CATCH();
	{
		ErrorData  *edata = abort_subxact(&work);

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
report_claim(void)
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
		report_claim();

	memset(&response, 0, sizeof(response));
	if (remember_errors)
		response.failed = run_remembering(sql, args, &response);
	else
		response.response = command_run(sql, args);

	attempt_check_size(&response);
	attempt_finish(&request->name, &response, result->attempt_no, 0);
	stats_count(response.failed ? STATS_FAILED : STATS_EXECUTED, 1);
	result->outcome = response.failed ? OUTCOME_FAILED : OUTCOME_EXECUTED;
	result->response = response;
	result->finished_at = GetCurrentTimestamp();
}
