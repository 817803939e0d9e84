/*-------------------------------------------------------------------------
 *
 * citus.h
 *	  What must be known of Citus: is a table distributed, is this a worker?
 *
 * A key's lock and its row are on one node.  On Citus a client may call the
 * functions of this edition on any node, so they fail where the tables could be
 * used on more than one.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_CITUS_H
#define IDEMPOTENCY_CITUS_H

/* Citus has to be preloaded, so this does not change while a server runs. */
extern bool citus_is_loaded(void);

/* Call these only if Citus is loaded: each reads one of its tables. */
extern bool citus_has_distributed(Oid relid);
extern bool citus_is_worker_node(void);

#endif							/* IDEMPOTENCY_CITUS_H */
