# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Keys that take the space of pruned ones: how often they change a BRIN summary, on a page that all sessions share.

measure_summaries() {
	local name
	boot_with "-c checkpoint_timeout=5min -c max_wal_size=1GB -c wal_keep_size=16GB"
	sql_or_die -c 'CREATE EXTENSION IF NOT EXISTS pg_walinspect'
	for name in none bare idempotency; do
		summaries_fill
		summaries_of "$name"
	done
	boot_with
	say '## Summaries in the steady state' '' \
		"$summaries_keys keys, with a retention of a day, go into space whose expired rows were pruned and vacuumed away, and whose" \
		'ranges have their BRIN summaries. 8 connections, `checkpoint_timeout` and `max_wal_size` as PostgreSQL comes.' '' \
		'| | changes of a summary | for each key | WAL bytes for each key, beyond no protection |' '|---|---:|---:|---:|'
	summaries_table
}

# As many keys as will come have expired and are gone, and some are left behind them.
summaries_fill() {
	local n=$summaries_keys
	fresh
	sql_or_die -c "INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
			SELECT key_id('acct_42 POST /v1/charges (eur)', k), 'acct_42 POST /v1/charges (eur)', k, 1,
				'{\"id\": 123456, \"amount\": 2000, \"object\": \"charge\", \"status\": \"succeeded\", \"currency\": \"eur\"}', t, t, t
			FROM (SELECT gen_random_uuid()::text AS k, now() + CASE WHEN i <= $n * 1.1 THEN interval '-1 hour' ELSE interval '1 hour' END AS t
				FROM generate_series(1, $n * 1.2) i) k" \
		-c 'INSERT INTO bare SELECT id, scope, key, fingerprint, attempt, status, headers, response, body, first_seen_at, finished_at,
			expires_at FROM idempotency_keys' \
		-c "SELECT idempotent_prune(2000000000)" -c "DELETE FROM bare WHERE expires_at <= now()" \
		-c "SELECT brin_desummarize_range('bare_expires_at_idx', 32 * i) FROM generate_series(0, pg_relation_size('bare') / 8192 / 32) i" \
		-c 'VACUUM idempotency_keys, bare' -c 'SELECT idempotent_prune()' -c "SELECT brin_summarize_new_values('bare_expires_at_idx')" \
		-c CHECKPOINT
}

summaries_of() {	# contender
	local script=$WORK/scripts/summaries.sql lsn
	mkdir -p "$WORK/scripts"
	echo "SELECT pay_$1(gen_random_uuid()::text);" >"$script"
	lsn=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
	run "$script" "-c synchronous_commit=off" -c 8 -t $((summaries_keys / 8)) >/dev/null
	sql_or_die -c 'SELECT pg_switch_wal()'
	sql -F ' ' -c "SELECT '$1', coalesce(sum(count) FILTER (WHERE \"resource_manager/record_type\" LIKE 'BRIN/%UPDATE%'), 0),
		round(sum(combined_size) / $summaries_keys) FROM pg_get_wal_stats('$lsn', pg_current_wal_flush_lsn(), true)" >>"$FIGURES/summaries" ||
		die "no figures of $1"
}

summaries_table() {
	local name updates wal none
	none=$(awk '$1 == "none" { print $3 }' "$FIGURES/summaries")
	while read -r name updates wal; do
		[ "$name" = none ] && continue
		printf '| %s | %d | %.4f | %d |\n' "$(stats label "$name")" "$updates" "$(calc "$updates / $summaries_keys" 4)" $((wal - none))
		[ "$name" != idempotency ] ||
			aim 'changes of BRIN summaries for each key, steady state' "$(calc "$updates / $summaries_keys" 4)" '' '' '<=' 0.01
	done <"$FIGURES/summaries"
}
