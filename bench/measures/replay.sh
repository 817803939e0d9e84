# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Replays of finished keys, against a SELECT of the same row by its primary key through the same protocol.

replay_keys=10000

# A key by number, the same in SQL and in pgbench: 32 digits that are a UUID too.
replay_key="(1000000000000000000 + i * 800000000000)::text || 'abcdefabcdefa'"

# Keys 1 to 10,000, finished by every contender.
replay_fill() {
	fresh
	sql_or_die -c "CREATE TEMPORARY TABLE replays AS SELECT $replay_key AS key FROM generate_series(1, $replay_keys::bigint) i" \
		-c "SELECT count(pay_idempotency(key)), count(pay_by_hand(key)), count(pay_by_lock(key)) FROM replays" \
		-c "INSERT INTO bare SELECT key::uuid, k.scope, k.key, k.fingerprint, k.attempt, k.status, k.headers, k.response,
				k.body, k.first_seen_at, k.finished_at, k.expires_at
			FROM replays JOIN idempotency_keys k USING (key)" \
		-c "VACUUM ANALYZE bare, by_hand, by_lock, idempotency_keys"
}

replay_script() {	# file, statement with :key for the key
	say "\\set k 1000000000000000000 + random(1, $replay_keys) * 800000000000" "${2//:key/(:k::text || \'abcdefabcdefa\')}" >"$1"
}

measure_replay() {
	local folder scope="'acct_42 POST /v1/charges (eur)'"
	folder=$(scripts replay)
	replay_fill
	replay_script "$folder/select.sql" 'SELECT * FROM bare WHERE id = :key::uuid;'
	replay_script "$folder/replay.sql" "SELECT * FROM idempotent_begin($scope, :key);"
	replay_script "$folder/by_hand.sql" 'SELECT pay_by_hand(:key);'
	replay_script "$folder/by_lock.sql" 'SELECT pay_by_lock(:key);'
	replay_script "$folder/idempotency.sql" 'SELECT pay_idempotency(:key);'
	turns replay "$folder" "" "${replay_names[@]}"
	say '## Replays' '' \
		"Retries of keys that are finished, $replay_keys of them at random, $clients connections. The SELECT and" \
		'`idempotent_begin` are one statement each, and read the same row with all its columns; the others are the' \
		'procedures of above.' ''
	tps_table replay select
	# shellcheck disable=SC2046	# three words
	aim 'replays: throughput, of a SELECT of the same row by primary key' $(stats ratio "$FIGURES/replay" replay select) '>=' 0.9
}
