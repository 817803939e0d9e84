# shellcheck shell=bash disable=SC2154
#
# What every recipe of a client is tested for. Sourced after server.sh; not executable, so that script/test passes over it.
# The caller has client(), which runs the program of $CLIENT.

run() { ACCOUNT=${ACCOUNT:-acct_1} PGPORT=$port client "$@"; }

orders() { psql -c "SELECT count(*) FROM orders WHERE item = '$1'"; }

contract() {	# client, way, port
	local CLIENT=$1 name="$1 $2" port=$3 item="$1 $2" scope='acct_1 orders' first said
	[ "$CLIENT" != django ] || scope='acct_1 POST orders'

	first=$(run place "$item 1" "$item" 1)
	ok "$name: started" test "$(psql -c "SELECT count(*) FROM orders WHERE id::text = '$first'")" = 1
	is "$(run place "$item 1" "$item" 1)" "$first" "$name: replayed"
	is "$(orders "$item")" 1 "$name: the work is done once"
	ok "$name: another account's same key is another key" \
		test "$(ACCOUNT=acct_2 run place "$item 1" "$item of two" 1)" -gt "${first:-0}"
	is "$(run place "$item 1" "$item" 2)" IK422 "$name: mismatch"

	psql -c "SELECT idempotent_begin('$scope', '$item 2', lease => '1 minute')" >/dev/null
	is "$(run place "$item 2" "$item" 1)" IK409 "$name: in progress under a lease"

	coproc HOLD { psql; }
	printf '%s\n' "BEGIN; SELECT (idempotent_begin('$scope', '$item 3')).outcome;" >&"${HOLD[1]}"
	read -r said <&"${HOLD[0]}"
	run place "$item 3" "$item" 1 >"$BASE/waited" &
	wait_for "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
	printf '%s\n' "SELECT idempotent_finish('$scope', '$item 3', '{\"id\": 4711}', 201, '{\"Content-Type\": \"application/json\"}'," \
		"'{\"id\": 4711}'); COMMIT;" '\q' >&"${HOLD[1]}"
	wait "$!"
	wait "$HOLD_PID" 2>/dev/null
	is "$said $(<"$BASE/waited")" "started 4711" "$name: in progress elsewhere, waits and replays"

	is "$(run place "$item 4" "$item" -1)" 23514 "$name: an error is an error"
	is "$(orders "$item")" 1 "$name: rolled back, waited or refused, nothing is ordered"
	ok "$name: rollback frees the key" test "$(run place "$item 4" "$item" 1)" -gt 0

	is "$(run begin "$item 5")" IK500 "$name: commit without finish"
	is "$(run autocommit "$item 6")" IK500 "$name: begin in autocommit"
}

directly_and_pooled() {	# clients…
	for CLIENT; do
		contract "$CLIENT" directly "$PGPORT"
		contract "$CLIENT" pooled "$PGBOUNCER_PORT"
	done
}
