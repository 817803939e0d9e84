# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# What a key takes: bytes of WAL, heap and indexes.

measure_bytes() {
	local name figures
	say '## Bytes for each key' '' \
		"$byte_keys keys, each a UUID (three transactions and rocket-rides: 19 digits) with a scope of 30 characters and a" \
		'response of about a hundred bytes. WAL is what comes on top of the transaction without protection.' ''
	say '| | WAL | of ON CONFLICT, UPDATE | heap | indexes | heap and indexes | of ON CONFLICT, UPDATE |' '|---|---:|---:|---:|---:|---:|---:|'
	for name in none by_hand bare by_lock three rocket idempotency; do
		bytes_of "$name"
	done
	awk '{ wal = $2 - floor; space = $3 + $4 } NR == 1 { floor = $2; next } NR == 2 { wal_of = wal; space_of = space }
		{ printf "%s %d %.4f %d %d %d %.4f\n", $1, wal, wal / wal_of, $3, $4, space, space / space_of }' "$FIGURES/bytes" >"$FIGURES/bytes.ratios"
	while read -r name figures; do
		# shellcheck disable=SC2086	# several words
		printf '| %s | %d | %.2f | %d | %d | %d | %.2f |\n' "$(stats label "$name")" $figures
	done <"$FIGURES/bytes.ratios"
	bytes_aims
}

# Contenders that are transactions of their own have no procedure of one transaction.
bytes_of() {	# contender
	local script=$WORK/scripts/bytes.sql table=$1 before
	case $1 in
		three | rocket) script=$WORK/src/bench/client/$1.sql ;;
		*) mkdir -p "$WORK/scripts" && echo "SELECT pay_$1(gen_random_uuid()::text);" >"$script" ;;
	esac
	case $1 in
		none) table=charges ;;
		idempotency) table=idempotency_keys ;;
		rocket) table=rocket_keys ;;
	esac
	fresh
	before=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
	run "$script" "-c synchronous_commit=off" -c 1 -t "$byte_keys" >/dev/null
	sql -F ' ' -c "SELECT '$1', (pg_current_wal_insert_lsn() - '$before') / $byte_keys::numeric,
			pg_table_size('$table') / $byte_keys, pg_indexes_size('$table') / $byte_keys" >>"$FIGURES/bytes"
}

bytes_aims() {
	local wal space
	read -r wal space < <(awk '$1 == "idempotency" { print $3, $7 }' "$FIGURES/bytes.ratios")
	aim 'WAL for each key, of ON CONFLICT and UPDATE by hand' "$wal" '' '' '<=' 0.75
	aim 'heap and indexes for each key, of ON CONFLICT and UPDATE by hand' "$space" '' '' '<=' 0.6
}
