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
 * Parse and analyse the statement, its parameters untyped, or raise what is
 * wrong with it.  And are there args whose own types could help where that
 * leaves a function's call ambiguous (42725)?
 */
extern void command_check(const char *command, Jsonb *args);
extern bool command_has_typed_args(Jsonb *args);

/*
 * Run the statement.  args is NULL or a JSON array; its elements are bound to
 * $1, $2 ... as values of the types that the statement gives them; by_value,
 * numbers and booleans come with a type of their own.  Returns
 * the only column of the only row as JSON, several columns as an object, and
 * NULL where there is no row or the value is null.  Two rows are an error (21000).
 */
extern Jsonb *command_run(const char *command, Jsonb *args, bool by_value);

/* command and args as one value, to be fingerprinted. */
extern Jsonb *command_as_request(text *command, Jsonb *args);

/*
 * Will an error of this code be the same next time?  What depends on the
 * server's condition, on other sessions or on this extension may pass.
 */
extern bool command_error_is_lasting(int sqlerrcode);

/* An error as {"error": {"sqlstate": ..., "message": ..., ...}}. */
extern Jsonb *command_error_as_response(const ErrorData *edata);

#endif							/* IDEMPOTENCY_COMMAND_H */
