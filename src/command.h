/*-------------------------------------------------------------------------
 *
 * command.h
 *	  One SQL statement, run as the caller: arguments from JSON, result to
 *	  JSON.
 *
 * Knows nothing of keys.  The statement is parsed and run with the caller's
 * own rights and search_path, never with the tables' owner's.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_COMMAND_H
#define IDEMPOTENCY_COMMAND_H

#include "utils/elog.h"
#include "utils/jsonb.h"

/*
 * Run the statement.  args is NULL or a JSON array; its elements are bound to
 * $1, $2 ... as values of the types that the statement gives them.  Returns the
 * only column of the only row as JSON, several columns as an object, and NULL
 * where there is no row or the value is null.  Two rows are an error (21000).
 * The statement's plan is kept for the session.
 */
extern Jsonb *command_run(const char *command, Jsonb *args);

/*
 * What is fingerprinted of a call without a request: args, or where there are
 * none the command.
 */
extern Jsonb *command_as_request(text *command, Jsonb *args);

/*
 * Would an error of this code come again on a retry?  All others may pass: with
 * the server's condition, other sessions, a deployment, or this extension.
 */
extern bool command_error_is_lasting(int sqlerrcode);

/* An error as {"error": {"sqlstate": ..., "message": ..., ...}}. */
extern Jsonb *command_error_as_response(const ErrorData *edata);

#endif							/* IDEMPOTENCY_COMMAND_H */
