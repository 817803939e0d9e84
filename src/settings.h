/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The extension's settings.
 *
 * Settings are policy: what an application or an administrator chooses once.
 * Rooms read them here; they are not handed down as parameters.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_SETTINGS_H
#define IDEMPOTENCY_SETTINGS_H

/* idempotency.max_key_length, in characters. */
extern int	settings_max_key_length;

/* idempotency.max_response_size, in bytes; 0: no limit. */
extern int	settings_max_response_size;

/* idempotency.key_time: read the time inside UUIDv7 and ULID keys. */
extern bool settings_key_time;

/* idempotency.max_attempts of a claim; 0: no end. */
extern int	settings_max_attempts;

/*
 * idempotency.retention and idempotency.corrections_retention, in
 * microseconds; the latter is 0 where corrections are kept.
 */
extern int64 settings_retention(void);
extern int64 settings_corrections_retention(void);

/* Define the settings.  Called once, when the library is loaded. */
extern void settings_init(void);

/*
 * Raise an error if a setting of ours had an invalid value or an unknown name
 * when the library was loaded.  PostgreSQL only warns of that, drivers hide
 * warnings, and a default in its place could be a weaker promise.
 */
extern void settings_check(void);

#endif							/* IDEMPOTENCY_SETTINGS_H */
