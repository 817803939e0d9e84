# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# A steady state in which keys take the space of those that have been pruned: what that writes, and what prune reads.

reuse_retentions=20

measure_reuse() {
	local job no script=$WORK/scripts/reuse.sql
	boot_with "-c checkpoint_timeout=5min -c max_wal_size=1GB -c autovacuum=on -c autovacuum_naptime=1s -c wal_keep_size=16GB"
	fresh
	sql_or_die -c 'CREATE EXTENSION IF NOT EXISTS pg_walinspect'
	mkdir -p "$WORK/scripts"
	echo 'SELECT pay_idempotency(gen_random_uuid()::text);' >"$script"
	run "$script" "-c synchronous_commit=off -c idempotency.retention=${reuse_retention}s" -c "$clients" -R "$reuse_rate" \
		-T $((reuse_retentions * reuse_retention)) >"$WORK/reuse" &
	job=$!
	for ((no = 1; no <= reuse_retentions; no++)); do
		reuse_of "$no"
	done
	wait "$job" || die "the callers failed"
	boot_with
	say '## Space used again' '' "First requests at $reuse_rate a second, $clients connections, with a retention of $reuse_retention s, so that keys take the" \
		'space of those that were pruned; prune each second, autovacuum that looks each second, `checkpoint_timeout` and' \
		'`max_wal_size` as PostgreSQL comes. WAL is that of the whole server, the work and prune included. The removal itself' \
		'reads the page of each key once. The shorter the retention, the finer the times of expiry, so that summaries change' \
		'more often than with a retention of a day, which is above.' '' \
		'| retention | keys finished | updates of BRIN summaries for each | WAL bytes for each | keys pruned | pages of the table read for each | pages of the table |' \
		'|---:|---:|---:|---:|---:|---:|---:|'
	reuse_table
}

# One retention: prune each second, and what has been written meanwhile.
reuse_of() {	# number
	local second lsn keys pruned
	lsn=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
	keys=$(sql -c 'SELECT last_value FROM charges_id_seq')
	: >"$WORK/reuse.pruned"
	for ((second = 0; second < reuse_retention; second++)); do
		sleep "$(awk -v n="$EPOCHREALTIME" 'BEGIN { printf "%.3f", 1 - (n - int(n)) }')"
		sql -F ' ' -c BEGIN -c 'SELECT idempotent_prune(100000)' -c "SELECT pg_stat_get_xact_blocks_fetched('idempotency_keys'::regclass)" \
			-c COMMIT | paste -sd ' ' >>"$WORK/reuse.pruned"
	done
	pruned=$(awk '{ keys += $1; pages += $2 } END { print keys, pages }' "$WORK/reuse.pruned")
	sql -F ' ' -c "SELECT $1, (SELECT last_value FROM charges_id_seq) - $keys,
		(SELECT sum(count) FROM pg_get_wal_stats('$lsn', pg_current_wal_flush_lsn(), true) WHERE \"resource_manager/record_type\" LIKE 'BRIN/%UPDATE%'),
		pg_current_wal_flush_lsn() - '$lsn', '$pruned', pg_relation_size('idempotency_keys') / 8192" >>"$FIGURES/reuse" || die "no figures"
}

reuse_table() {
	awk '$1 ~ /^(1|2|3|5|10|15|20)$/ { printf "| %d | %d | %.4f | %.0f | %d | %s | %d |\n", $1, $2, $3 / $2, $4 / $2, $5,
		($5 > 0 ? sprintf("%.2f", $6 / $5) : ""), $7 }' "$FIGURES/reuse"
}
