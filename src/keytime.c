/*-------------------------------------------------------------------------
 *
 * keytime.c
 *	  The time inside a key: UUIDv7 (RFC 9562) and ULID.
 *
 * Both begin with 48 bits of Unix time in milliseconds.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "keytime.h"

#define UUID_TEXT_LEN 36
#define ULID_TEXT_LEN 26
#define ULID_TIME_LEN 10

/* 2016-01-01, in milliseconds since 1970 */
#define MILLIS_OF_2016 UINT64CONST(1451606400000)

/* The letters' values in Crockford's base 32, which has no i, l, o and u. */
static const int8 letter_values[26] = {
	10, 11, 12, 13, 14, 15, 16, 17, -1, 18, 19, -1, 20, 21, -1,
	22, 23, 24, 25, 26, -1, 27, 28, 29, 30, 31
};

/* In base 32, either case, of which base 16 is the beginning; -1: no digit. */
static int
digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 'a' - 'A';
	return c >= 'a' && c <= 'z' ? letter_values[c - 'a'] : -1;
}

/*
 * The first 48 bits of a UUIDv7 (RFC 9562, 5.7), in milliseconds since 1970.
 * False if the text is no UUID of version 7 with the usual variant.
 */
static bool
millis_of_uuid7(const char *key, uint64 *millis)
{
	for (int i = 0; i < UUID_TEXT_LEN; i++)
	{
		int			value = digit_value(key[i]);

		if (i == 8 || i == 13 || i == 18 || i == 23)
		{
			if (key[i] != '-')
				return false;
			continue;
		}
		if (value < 0 || value > 15 ||
			(i == 14 && value != 7) ||	/* version */
			(i == 19 && (value & 0xC) != 0x8))	/* variant */
			return false;
		if (i < 13)
			*millis = *millis << 4 | value;
	}
	return true;
}

static bool
millis_of_ulid(const char *key, uint64 *millis)
{
	for (int i = 0; i < ULID_TEXT_LEN; i++)
	{
		int			value = digit_value(key[i]);

		if (value < 0 || (i == 0 && value > 7))
			return false;
		if (i < ULID_TIME_LEN)
			*millis = *millis << 5 | value;
	}
	return true;
}

bool
keytime_millis(const char *key, int len, uint64 *millis)
{
	*millis = 0;
	return (len == UUID_TEXT_LEN && millis_of_uuid7(key, millis)) ||
		(len == ULID_TEXT_LEN && millis_of_ulid(key, millis));
}

bool
keytime_known(const char *key, int len, TimestampTz *made_at)
{
	uint64		millis;

	if (!keytime_millis(key, len, &millis) || millis < MILLIS_OF_2016)
		return false;

	/* 48 bits of milliseconds end in the year 10889: no overflow */
	*made_at = (TimestampTz) millis * 1000 -
		(TimestampTz) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	return true;
}
