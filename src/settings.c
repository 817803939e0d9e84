/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The extension's settings.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

#include "compat.h"
#include "errors.h"
#include "settings.h"

#define PREFIX "idempotency."

/*
 * idempotency.retention: how long after its finish a key is kept, in seconds.
 * 24 hours are what Stripe keeps.
 */
static int	retention_seconds = 86400;

/*
 * idempotency.corrections_retention: how long the rows of
 * idempotency_corrections are kept, in seconds.  0: for good.
 */
static int	corrections_retention_seconds = 0;

/*
 * 255 characters are what Stripe and most others allow; Toss Payments allows
 * 300.
 */
int			settings_max_key_length = 255;
int			settings_max_response_size = 0;
bool		settings_key_time = false;

/*
 * With the usual backoff of 1, 2, 4 ... 60 minutes the tenth attempt comes
 * after about four hours.
 */
int			settings_max_attempts = 10;

/* The setting that was invalid when the library was loaded, or empty. */
static char invalid_setting[NAMEDATALEN] = "";

int64
settings_retention(void)
{
	return retention_seconds * USECS_PER_SEC;
}

int64
settings_corrections_retention(void)
{
	return corrections_retention_seconds * USECS_PER_SEC;
}

/* Define each setting with its default, bounds and unit. */
static void
define_settings(void)
{
	DefineCustomIntVariable(PREFIX "retention",
							"How long after its finish an idempotency key is kept.",
							NULL,
							&retention_seconds, 86400, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable(PREFIX "corrections_retention",
							"How long the corrections of idempotent_resolve are kept.",
							"0 keeps them for good.",
							&corrections_retention_seconds, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable(PREFIX "max_key_length",
							"Longest idempotency key that is accepted, in characters.",
							NULL,
							&settings_max_key_length, 255, 1, 65535,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(PREFIX "max_response_size",
							"Largest response that is stored with an idempotency key.",
							"Response, headers and body together, before compression; 0 means no limit.",
							&settings_max_response_size, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomIntVariable(PREFIX "max_attempts",
							"Attempts under lease after which an idempotency key is parked.",
							"Taken when the claim is first made; 0 means no end.",
							&settings_max_attempts, 10, 0, INT_MAX,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable(PREFIX "key_time",
							 "Reads the time inside UUIDv7 and ULID idempotency keys.",
							 "Requests older than their retention are refused even after the key was pruned.",
							 &settings_key_time, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
}

/*
 * The values that were set before the library was loaded, by ALTER ROLE, say,
 * are placeholders by now.  One that was RESET, by a pooler's DISCARD ALL, say,
 * or SET LOCAL in a transaction that is over, has no value any more.
 */
static List *
list_placeholders(void)
{
	List	   *names = NIL;
	int			count;
	struct config_generic **variables = compat_guc_variables(&count);

	for (int i = 0; i < count; i++)
	{
		if ((variables[i]->flags & GUC_CUSTOM_PLACEHOLDER) != 0 &&
			variables[i]->source != PGC_S_DEFAULT &&
			pg_strncasecmp(variables[i]->name, PREFIX, strlen(PREFIX)) == 0)
			names = lappend(names, pstrdup(variables[i]->name));
	}
	return names;
}

/*
 * A placeholder whose name is not ours is gone by now, and one with an invalid
 * value has left the default in force.
 */
static bool
was_taken_over(const char *name)
{
	int			count;
	struct config_generic **variables = compat_guc_variables(&count);

	for (int i = 0; i < count; i++)
	{
		if (pg_strcasecmp(variables[i]->name, name) == 0)
			return (variables[i]->flags & GUC_CUSTOM_PLACEHOLDER) == 0 &&
				variables[i]->source != PGC_S_DEFAULT;
	}
	return false;
}

void
settings_init(void)
{
	List	   *placeholders = list_placeholders();
	ListCell   *cell;

	define_settings();
	MarkGUCPrefixReserved("idempotency");
	foreach(cell, placeholders)
	{
		if (!was_taken_over(lfirst(cell)))
			strlcpy(invalid_setting, lfirst(cell), sizeof(invalid_setting));
	}
	list_free_deep(placeholders);
}

void
settings_check(void)
{
	if (likely(invalid_setting[0] == '\0'))
		return;
	if (was_taken_over(invalid_setting))
	{
		invalid_setting[0] = '\0';	/* a valid value has been SET since */
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_IDEMPOTENCY_MISUSE),
			 errmsg("setting \"%s\" is unknown or has an invalid value", invalid_setting),
			 errhint("Correct it where it was set (ALTER ROLE, ALTER DATABASE, the configuration file or the connection's options), and connect again.")));
}
