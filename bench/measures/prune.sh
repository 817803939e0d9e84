# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Prune of expired keys: what it costs, and what it does to the callers beside it.

measure_prune() {
	local rate round name
	fresh
	sql_or_die -c "CREATE TABLE expired AS SELECT gen_random_uuid() AS id, i FROM generate_series(1, $prune_keys) i"
	say '## Prune' ''
	prune_cost
	prune_beside_callers
	sql_or_die -c "DROP TABLE expired"
}

# Keys that expired one after the other within the last hour, in the table as fresh as after loading.
prune_fill() {
	fresh
	sql_or_die -c "INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT id, 'acct_42 POST /v1/charges (eur)', id::text, 1,
			'{\"id\": 123456, \"amount\": 2000, \"object\": \"charge\", \"status\": \"succeeded\", \"currency\": \"eur\"}',
			t, t, t + interval '24 hours'
		FROM (SELECT id, now() - interval '25 hours' + interval '1 hour' * (i / $prune_keys.0) AS t FROM expired ORDER BY i) k" \
		-c 'VACUUM ANALYZE idempotency_keys'
}

# Prunes until nothing has expired, as one would after a holiday, or for a time; prints how many keys.
prune_in_a_row() {	# seconds to wait between two, file whose presence ends it
	local pruned=0 now
	while [ ! -e "$2" ]; do
		now=$(sql -c 'SELECT idempotent_prune()') || return 1
		[ "$now" -gt 0 ] || [ "$1" != 0 ] || break
		pruned=$((pruned + now))
		sleep "$1"
	done
	echo "$pruned"
}

seconds_of() {	# psql's arguments
	local start
	start=$(date +%s%N)
	sql_or_die "$@"
	calc "($(date +%s%N) - $start) / 1e9" 3
}

# Alone on the machine, one connection, no waiting for the disk at commit.
prune_cost() {
	local prune wal vacuum key_us none_us folder
	export PGOPTIONS='-c synchronous_commit=off'
	prune_fill
	yes 'SELECT idempotent_prune();' | head -n $((prune_keys / 10000 + 1)) >"$WORK/prune.sql"
	wal=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
	prune=$(seconds_of -f - <"$WORK/prune.sql")
	wal=$(sql -c "SELECT (pg_current_wal_insert_lsn() - '$wal') / $prune_keys")
	[ "$(sql -c 'SELECT count(*) FROM idempotency_keys')" = 0 ] || die "not everything that had expired was pruned"
	vacuum=$(seconds_of -c 'VACUUM idempotency_keys')
	unset PGOPTIONS
	folder=$(scripts prune)
	echo 'SELECT pay_none(gen_random_uuid()::text);' >"$folder/none.sql"
	echo 'SELECT pay_idempotency(gen_random_uuid()::text);' >"$folder/idempotency.sql"
	for ((round = 1; round <= rounds; round++)); do
		for name in none idempotency; do
			turn "$FIGURES/prune.inserts" "$round" "$name" "$folder/$name.sql" "-c synchronous_commit=off" -c 1 -T "$short"
		done
	done
	key_us=$(calc "1e6 / $(stats median "$FIGURES/prune.inserts" idempotency)")
	none_us=$(calc "1e6 / $(stats median "$FIGURES/prune.inserts" none)")
	prune_cost_table "$wal" "$(calc "$prune * 1e6 / $prune_keys")" "$(calc "$vacuum * 1e6 / $prune_keys")" "$key_us" "$(calc "$key_us - $none_us")"
}

prune_cost_table() {	# WAL bytes a key; microseconds a key: prune, vacuum, request, key's part of a request
	local wal=$1
	shift
	say "$prune_keys expired keys are removed by one connection, ten thousand in a transaction, with nothing else at work and" \
		'`synchronous_commit = off`. Beside it what the same connection took to make a key.' '' \
		'| | µs a key | of the whole request | of the key alone |' '|---|---:|---:|---:|'
	printf '| request through a stored procedure, work and key | %.2f | 1 | |\n' "$3"
	printf '| the key alone: what the request takes more than without protection | %.2f | %.3f | 1 |\n' "$4" "$(calc "$4 / $3" 4)"
	printf '| prune | %.2f | %.3f | %.3f |\n' "$1" "$(calc "$1 / $3" 4)" "$(calc "$1 / $4" 4)"
	printf '| VACUUM afterwards | %.2f | %.3f | %.3f |\n' "$2" "$(calc "$2 / $3" 4)" "$(calc "$2 / $4" 4)"
	printf '\nPrune writes %.0f bytes of WAL for each key.\n' "$wal"
	aim "prune: cost, of what the inserts of the same keys cost" "$(calc "$1 / $3" 4)" '' '' '<=' 0.1
}

# Callers at a quarter of what the machine can do: at its limit a p99 tells of queues alone.
prune_beside_callers() {
	local pruned=0
	echo 'SELECT pay_idempotency(gen_random_uuid()::text);' >"$WORK/scripts/prune/callers.sql"
	rate=$(quarter_of_capacity "$WORK/scripts/prune/callers.sql") || exit 1
	for ((round = 1; round <= rounds; round++)); do
		for name in "${prune_names[@]}"; do
			prune_turn "$name"
		done
	done
	say '' "Callers beside it, first requests at $rate a second, a quarter of what the machine can do, $clients connections." \
		"There are $prune_keys expired keys at the start of each turn. Scheduled is ten thousand keys each second; in a row is" \
		'one prune after the other, which takes a processor of its own as long as there is something.' ''
	prune_callers_table
	# shellcheck disable=SC2046	# three words
	aim "p99 of callers while prune removes 10,000 keys each second, of p99 without" \
		$(stats ratio "$FIGURES/prune.callers" scheduled alone 6) '<=' 1.2
}

# Ends the loop that prunes by a file: a psql that is killed would leave its statement running.
prune_turn() {	# alone, scheduled or row
	local stop=$WORK/prune.stop job pause=0
	rm -f "$stop"
	prune_fill
	[ "$1" != scheduled ] || pause=1
	if [ "$1" != alone ]; then
		prune_in_a_row "$pause" "$stop" >"$WORK/pruned" &
		job=$!
	fi
	turn "$FIGURES/prune.callers" "$round" "$1" "$WORK/scripts/prune/callers.sql" "" -c "$clients" -R "$rate" -T "$prune_seconds"
	[ "$1" != alone ] || return 0
	touch "$stop"
	wait "$job" || die "prune failed beside callers"
	echo "$1 $(cat "$WORK/pruned")" >>"$FIGURES/prune.removed"
}

prune_callers_table() {
	local name text
	say '| | keys removed in a turn | p50 ms | p95 ms | p99 ms | p99, of that without prune | lowest to highest |' \
		'|---|---:|---:|---:|---:|---:|---|'
	for name in "${prune_names[@]}"; do
		case $name in
			alone) text='no prune' ;;
			scheduled) text='scheduled' ;;
			row) text='in a row' ;;
		esac
		printf '| %s | %d | %.2f | %.2f | %.2f | %s |\n' "$text" \
			"$(awk -v n="$name" '$1 == n { sum += $2; turns++ } END { print turns ? sum / turns : 0 }' "$FIGURES/prune.removed")" \
			"$(stats median "$FIGURES/prune.callers" "$name" 4)" "$(stats median "$FIGURES/prune.callers" "$name" 5)" \
			"$(stats median "$FIGURES/prune.callers" "$name" 6)" "$(ratio_cells "$FIGURES/prune.callers" "$name" alone 6)"
	done
}
