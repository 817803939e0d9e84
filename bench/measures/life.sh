# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# WAL of a key's life. Between its stages there are checkpoints, as there are wherever a key lives for hours, after which
# each page that a stage touches goes to the WAL as a whole.

measure_life() {
	local stage method methods=(off)
	! sql -c "SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'" | grep -q lz4 || methods+=(lz4)
	for method in "${methods[@]}"; do
		boot_with "-c wal_compression=$method"
		life_of "$method"
	done
	boot_with
	say "## WAL of a key's life" '' \
		"Bytes for each of $life_keys keys, with a checkpoint before each stage, as where a key lives for longer than" \
		'`checkpoint_timeout`; by `wal_compression`.' ''
	printf '| |'; printf ' %s |' "${methods[@]}"
	printf '\n|---|'; printf -- '---:|%.0s' "${methods[@]}"; echo
	life_table "${methods[@]}"
}

life_insert() {
	sql_or_die -c "INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT key_id('acct_42 POST /v1/charges (eur)', k), 'acct_42 POST /v1/charges (eur)', k, 1,
			'{\"id\": 123456, \"amount\": 2000, \"object\": \"charge\", \"status\": \"succeeded\", \"currency\": \"eur\"}', t, t, t
		FROM (SELECT gen_random_uuid()::text AS k, now() - interval '1 hour' + interval '1 ms' * i AS t
			FROM generate_series(1, $life_keys) i) k"
}

life_prune() {
	local pruned
	pruned=$(yes 'SELECT idempotent_prune();' | head -n $((life_keys / 10000)) | sql -f - | awk '{ sum += $1 } END { print sum }')
	[ "$pruned" = "$life_keys" ] || die "$pruned keys were pruned of $life_keys"
}

life_of() {	# method
	local stage before
	for stage in insert vacuum freeze prune vacuum_after insert_again prune_at_once; do
		case $stage in
			insert | insert_again) fresh ;;
			prune_at_once) ;;
			*) sql_or_die -c CHECKPOINT ;;
		esac
		before=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
		case $stage in
			insert*) life_insert ;;
			vacuum*) sql_or_die -c 'VACUUM idempotency_keys' ;;
			freeze) sql_or_die -c 'VACUUM (FREEZE) idempotency_keys' ;;
			prune*) life_prune ;;
		esac
		sql -F ' ' -c "SELECT '$1', '$stage', round((pg_current_wal_insert_lsn() - '$before') / $life_keys::numeric)" >>"$FIGURES/life"
	done
}

life_table() {	# methods…
	local stage text method
	for stage in insert vacuum freeze prune vacuum_after prune_at_once; do
		case $stage in
			insert) text='insert, into an empty table' ;;
			vacuum) text='first VACUUM' ;;
			freeze) text='freeze' ;;
			prune) text='prune' ;;
			vacuum_after) text='VACUUM afterwards' ;;
			prune_at_once) text='prune without a checkpoint since the insert' ;;
		esac
		printf '| %s |' "$text"
		for method; do
			printf ' %s |' "$(awk -v m="$method" -v s="$stage" '$1 == m && $2 == s { print $3 }' "$FIGURES/life")"
		done
		echo
	done
}
