# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# A steady state, scaled down: keys come, expire after a ninth of the time, are pruned each second and vacuumed by autovacuum.

measure_steady() {
	local job second rate retention=$((steady_seconds / 9))
	fresh
	sql_or_die -c "ALTER SYSTEM SET autovacuum = on" -c "ALTER SYSTEM SET autovacuum_naptime = '1s'" -c 'SELECT pg_reload_conf()'
	mkdir -p "$WORK/scripts"
	echo 'SELECT pay_idempotency(gen_random_uuid()::text);' >"$WORK/scripts/steady.sql"
	rate=$(quarter_of_capacity "$WORK/scripts/steady.sql") || exit 1
	fresh
	run "$WORK/scripts/steady.sql" "-c idempotency.retention=${retention}s" -c "$clients" -R "$rate" -T "$steady_seconds" >"$WORK/steady" &
	job=$!
	for ((second = 1; second < steady_seconds; second++)); do
		steady_tick "$second"
	done
	wait "$job" || die "the steady callers failed"
	sql_or_die -c 'ALTER SYSTEM RESET autovacuum' -c 'ALTER SYSTEM RESET autovacuum_naptime' -c 'SELECT pg_reload_conf()'
	steady_report
}

# Until the second is over.
steady_tick() {	# second
	local started=$EPOCHREALTIME
	sql -F ' ' -c 'SELECT FROM idempotent_prune()' \
		-c "SELECT $1, pg_table_size('idempotency_keys') / 1e6, pg_indexes_size('idempotency_keys') / 1e6,
			(SELECT count(*) FROM idempotency_keys)" | grep . >>"$FIGURES/steady" || die "prune failed in the steady state"
	sleep "$(awk -v s="$started" -v n="$EPOCHREALTIME" 'BEGIN { left = 1 - (n - s); print (left > 0 ? left : 0) }')"
}

steady_report() {
	local middle end
	middle=$(steady_mean 0.4 0.6)
	end=$(steady_mean 0.8 1)
	say '## Steady state' '' "An hour scaled down to $steady_seconds s: first requests at $rate a second, a retention of $retention s, prune each" \
		'second, autovacuum that looks each second. Table and indexes together:' '' \
		'| | MB |' '|---|---:|' "| mean of the middle fifth | $middle |" "| mean of the last fifth | $end |" \
		"| ratio | $(calc "$end / $middle") |" '' "p99 of the callers, with prune and VACUUM at work: $(awk '{ print $4 }' "$WORK/steady") ms."
	chart steady 'Size of the table and its indexes over time' steady.gp "data='$FIGURES/steady'"
}

steady_mean() {	# share of the time, from and to
	awk -v from="$1" -v to="$2" -v n="$steady_seconds" '$1 >= from * n && $1 <= to * n { sum += $2 + $3; rows++ }
		END { printf "%.2f", sum / rows }' "$FIGURES/steady"
}
