/*-------------------------------------------------------------------------
 *
 * attempt_call.h
 *	  An attempt whose work is one SQL statement: begin, run, finish.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ATTEMPT_CALL_H
#define IDEMPOTENCY_ATTEMPT_CALL_H

#include "attempt.h"

/*
 * Run the command unless the key has been finished, and finish the key with
 * what it returned.  With remember_errors, an error that will be the same
 * next time undoes the command's work alone and is stored as the response.
 */
extern void attempt_call(const AttemptRequest *request, text *command,
						 Jsonb *args, bool remember_errors,
						 AttemptResult *result);

#endif							/* IDEMPOTENCY_ATTEMPT_CALL_H */
