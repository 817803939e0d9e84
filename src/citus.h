/*-------------------------------------------------------------------------
 *
 * citus.h
 *	  What must be known of Citus: is a table distributed, is this a worker?
 *
 * A key's lock and its row are of one node.  On Citus the functions of this
 * edition run on whichever node is asked, so they refuse to work where that
 * could be more than one.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_CITUS_H
#define IDEMPOTENCY_CITUS_H

/* Citus has to be preloaded, so this does not change while a server runs. */
extern bool citus_is_loaded(void);

/* To be asked only where Citus is loaded.  Each reads a table of Citus's. */
extern bool citus_has_distributed(Oid relid);
extern bool citus_is_worker_node(void);

#endif							/* IDEMPOTENCY_CITUS_H */
