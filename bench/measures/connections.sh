# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# First requests through a stored procedure by 1 to 64 connections.

measure_connections() {
	local names=(none bare idempotency) round count name folder
	folder=$(scripts connections)
	for name in "${names[@]}"; do
		echo "SELECT pay_$name(gen_random_uuid()::text);" >"$folder/$name.sql"
	done
	fresh
	for ((round = 1; round <= rounds; round++)); do
		for count in 1 2 4 8 16 32 64; do
			for name in "${names[@]}"; do
				turn "$FIGURES/connections" "$round" "$name@$count" "$folder/$name.sql" "" -c "$count" -T "$short"
			done
		done
	done
	say '## One to 64 connections' '' 'First requests through a stored procedure, transactions a second.' '' \
		'| connections | no protection | one bare INSERT more | **idempotency** | of one bare INSERT more | lowest to highest | p99 ms, bare | p99 ms, idempotency |' \
		'|---:|---:|---:|---:|---:|---|---:|---:|'
	for count in 1 2 4 8 16 32 64; do
		connections_row "$count"
	done
	chart connections 'Throughput by number of connections' connections.gp "data='$FIGURES/connections.series'"
}

connections_row() {	# number of connections
	local none bare ours
	none=$(stats median "$FIGURES/connections" "none@$1")
	bare=$(stats median "$FIGURES/connections" "bare@$1")
	ours=$(stats median "$FIGURES/connections" "idempotency@$1")
	echo "$1 $none $bare $ours" >>"$FIGURES/connections.series"
	printf '| %d | %.0f | %.0f | %.0f | %s | %.2f | %.2f |\n' "$1" "$none" "$bare" "$ours" \
		"$(ratio_cells "$FIGURES/connections" "idempotency@$1" "bare@$1")" \
		"$(stats median "$FIGURES/connections" "bare@$1" 6)" "$(stats median "$FIGURES/connections" "idempotency@$1" 6)"
}
