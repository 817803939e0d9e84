/*-------------------------------------------------------------------------
 *
 * utf8.h
 *	  Text in UTF-8, whatever the database's encoding.
 *
 * A key's identity and a request's fingerprint must be the same after a dump of
 * a LATIN1 database has been restored into a UTF8 one.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_UTF8_H
#define IDEMPOTENCY_UTF8_H

/* Is the server's text UTF-8 already, or SQL_ASCII, whose bytes are as they are? */
extern bool utf8_is_server_encoding(void);

/*
 * The string in UTF-8, palloc'd, and its length in *len; the string itself if
 * the server's text is UTF-8 already.
 */
extern char *utf8_from_server(const char *string, int *len);

#endif							/* IDEMPOTENCY_UTF8_H */
