# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# What a key takes once many are stored: WAL right after a checkpoint, when each page that is touched goes to the WAL as a
# whole, and bytes of the primary key. It depends on where in the index the next key goes, hence on the kind of key.

stored_kinds=(v4 v7 mixed)
stored_names=(by_hand bare idempotency)

measure_stored() {
	local kind name
	for kind in none "${stored_kinds[@]}"; do
		stored_load "$kind" 0
		stored_run "$kind" 0
	done
	for kind in "${stored_kinds[@]}"; do
		stored_load "$kind" "$stored_keys"
		stored_run "$kind" "$stored_keys"
	done
	boot_with
	say "## With $stored_keys keys stored" '' \
		"Bytes of WAL for each of the first $stored_new keys after a checkpoint, beyond those of the transaction without protection," \
		'8 connections, `checkpoint_timeout` and `max_wal_size` as PostgreSQL comes; and bytes of the primary key for each' \
		'of the stored keys. Keys came at 1000 a second, each up to 5 s after it was made. The bare INSERT has the UUID itself as its' \
		'primary key, by hand it is scope and key as text.' '' \
		"| keys | | WAL, empty table | WAL, $stored_keys stored | of the empty table's | of ON CONFLICT, UPDATE | primary key |" \
		'|---|---|---:|---:|---:|---:|---:|'
	for kind in "${stored_kinds[@]}"; do
		for name in "${stored_names[@]}"; do
			stored_row "$kind" "$name"
		done
	done
	stored_aims
}

# The text of a key that came at a moment.
stored_key() {	# kind, moment
	local v7="uuid_v7($2 - random() * interval '5 s')"
	case $1 in
		v7) echo "$v7" ;;
		mixed) echo "CASE WHEN random() < 0.1 THEN gen_random_uuid()::text ELSE $v7 END" ;;
		*) echo 'gen_random_uuid()::text' ;;
	esac
}

stored_kind() {	# kind, as the table calls it
	case $1 in
		v4) echo 'UUIDv4' ;;
		v7) echo 'UUIDv7' ;;
		mixed) echo 'UUIDv7, a tenth UUIDv4' ;;
	esac
}

# The tables with keys in the order in which they came, so that the indexes are as they grow. Without WAL, which spares
# minutes.
stored_load() {	# kind, keys
	local scope="'acct_42 POST /v1/charges (eur)'" rows
	boot_with "-c wal_level=minimal -c max_wal_senders=0"
	fresh
	rows="FROM (SELECT $(stored_key "$1" at) AS k, at
		FROM (SELECT clock_timestamp() - interval '1 ms' * ($2 - i) AS at FROM generate_series(1, $2) i) i) k"
	stored_fill idempotency_keys "(id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT key_id($scope, k), $scope, k, 1, $stored_response, at, at, at + interval '24 hours' $rows"
	stored_fill bare "(id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT k::uuid, $scope, k, 1, $stored_response, at, at, at + interval '24 hours' $rows"
	stored_fill by_hand "(scope, key, response, created_at, expires_at)
		SELECT $scope, k, $stored_response, at, at + interval '24 hours' $rows"
	# One that begin does not find would not be in its place.
	sql -c "SELECT count(*) FROM (SELECT key FROM idempotency_keys LIMIT 100) k, idempotent_lookup($scope, key) l
		WHERE l.outcome IS DISTINCT FROM 'replayed'" | grep -qx 0 || die "the keys are not stored as begin stores them"
	boot_with "-c checkpoint_timeout=5min -c max_wal_size=1GB"
}
stored_response="'{\"id\": 123456, \"amount\": 2000, \"object\": \"charge\", \"status\": \"succeeded\", \"currency\": \"eur\"}'::jsonb"

stored_fill() {	# table, rest of the INSERT
	sql_or_die --single-transaction -c "TRUNCATE $1" -c "INSERT INTO $1 $2"
	sql_or_die -c "VACUUM (ANALYZE) $1"
}

stored_run() {	# kind, keys
	local name table script=$WORK/scripts/stored.sql names=("${stored_names[@]}") before
	mkdir -p "$WORK/scripts"
	[ "$1" != none ] || names=(none)
	for name in "${names[@]}"; do
		case $name in
			none) table=charges ;;
			idempotency) table=idempotency_keys ;;
			*) table=$name ;;
		esac
		before=$(sql -c "SELECT round(pg_relation_size('${table}_pkey') / greatest($2, 1)::numeric, 1)")
		echo "SELECT pay_$name($(stored_key "$1" 'clock_timestamp()'));" >"$script"
		sql_or_die -c CHECKPOINT
		lsn=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
		run "$script" "-c synchronous_commit=off" -c 8 -t $((stored_new / 8)) >/dev/null
		sql -F ' ' -c "SELECT '$1', '$name', $2, round((pg_current_wal_insert_lsn() - '$lsn') / $((stored_new / 8 * 8))::numeric, 1), $before" \
			>>"$FIGURES/stored" || die "no figures of $name"
	done
}

stored_figure() {	# kind, contender, keys: WAL without the work's, and the index
	awk -v kind="$1" -v name="$2" -v keys="$3" '$1 == "none" { work = $4 }
		$1 == kind && $2 == name && $3 == keys { print $4 - work, $5 }' "$FIGURES/stored"
}

stored_row() {	# kind, contender
	local empty full index by_hand
	read -r empty _ < <(stored_figure "$1" "$2" 0)
	read -r full index < <(stored_figure "$1" "$2" "$stored_keys")
	read -r by_hand _ < <(stored_figure "$1" by_hand "$stored_keys")
	printf '| %s | %s | %.0f | %.0f | %.2f | %.2f | %.1f |\n' "$(stored_kind "$1")" "$(stats label "$2")" "$empty" "$full" \
		"$(calc "$full / $empty")" "$(calc "$full / $by_hand")" "$index"
}

stored_aims() {
	local empty full index by_hand
	read -r empty _ < <(stored_figure v7 idempotency 0)
	read -r full _ < <(stored_figure v7 idempotency "$stored_keys")
	read -r by_hand _ < <(stored_figure v7 by_hand "$stored_keys")
	aim "WAL a key after a checkpoint, $stored_keys stored, UUIDv7: of the empty table's" "$(calc "$full / $empty")" '' '' '<=' 1.2
	aim "the same, of ON CONFLICT and UPDATE by hand" "$(calc "$full / $by_hand")" '' '' '<=' 0.8
	read -r full _ < <(stored_figure v4 idempotency "$stored_keys")
	read -r by_hand _ < <(stored_figure v4 by_hand "$stored_keys")
	aim "the same, UUIDv4" "$(calc "$full / $by_hand")" '' '' '<=' 0.7
	read -r _ index < <(stored_figure mixed idempotency "$stored_keys")
	aim "bytes of the primary key for each key, UUIDv7 with a tenth UUIDv4" "$index" '' '' '<=' 40
}
