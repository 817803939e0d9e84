-- What happens to keys right now, again every two seconds: psql -d shop -U watcher -f monitoring/screen.sql
--
-- Ctrl-C ends it. -v every=10 chooses the interval, in seconds. It needs pg_monitor and SELECT (expires_at) on idempotency_keys.
-- The extension's schema must be in the search_path. On the SQL edition, which does not count, the counters' lines are missing.
\set QUIET on
\pset footer off
\pset null ''
\if :{?every}
\else
	\set every 2
\endif
WITH f AS MATERIALIZED (SELECT * FROM idempotency_in_flight),
stats AS MATERIALIZED (
	-- The SQL edition's function fails, so it must not be called there. PostgreSQL evaluates this condition before the view.
	SELECT * FROM idempotency_stats
	WHERE (SELECT l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.oid = 'idempotent_stats()'::regprocedure) = 'c'
)
SELECT what, how_many, date_trunc('second', for_how_long) AS for_how_long, which, who_or_why
FROM (
	SELECT 1 AS part, 0::numeric AS place, 'stored' AS what,
		   pg_stat_get_live_tuples('idempotency_keys'::regclass)::text AS how_many, NULL::interval AS for_how_long,
		   pg_size_pretty(pg_total_relation_size('idempotency_keys')) AS which, NULL AS who_or_why
	UNION ALL
	SELECT 2, 0, 'expired, not pruned', count(*)::text, now() - min(expires_at), NULL, NULL
	FROM (SELECT expires_at FROM idempotency_keys WHERE expires_at < now() LIMIT 100000) AS backlog
	UNION ALL
	(SELECT 3, row_number() OVER (ORDER BY count(w.pid) DESC, h.since),
			CASE WHEN h.pid IS NULL THEN 'held, prepared' ELSE 'held' END, count(w.pid) || ' waiting', now() - h.since,
			coalesce(h.scope || ' / ' || h.key, h.id_suffix), concat_ws(' ', 'pid ' || h.pid, h.usename, h.client_addr, h.state)
	 FROM f h LEFT JOIN f w ON w.waiting AND w.id_suffix = h.id_suffix
	 WHERE NOT h.waiting
	 GROUP BY h.pid, h.since, h.scope, h.key, h.id_suffix, h.usename, h.client_addr, h.state
	 ORDER BY 2 LIMIT 8)
	UNION ALL
	(SELECT 4, row_number() OVER (ORDER BY parked DESC, due_at), CASE WHEN parked THEN 'parked' ELSE 'stalled' END, 'attempt ' || attempts,
			stalled_for, concat_ws(' / ', scope, key), concat_ws(': ', checkpoint, left(last_error, 40))
	 FROM idempotency_stalled
	 ORDER BY 2 LIMIT 8)
	UNION ALL
	SELECT 5, n, 'counted: ' || replace(name, '_', ' '), value, now() - stats_reset, NULL, NULL
	FROM stats, json_each_text(row_to_json(stats)) WITH ORDINALITY AS counter(name, value, n)
	WHERE name <> 'stats_reset' AND value <> '0'
) AS lines
ORDER BY part, place
\watch :every
