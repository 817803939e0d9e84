# shellcheck shell=bash
#
# Five minutes of an application with its troubles, for a picture of the dashboard. Sourced by test/checks/monitoring.
#
# A client hangs with a key while others retry it, workers die under lease and a batch takes over, prune is switched off for a while.

need /usr/bin/chromium chromium

MINUTES=5

# What runs all the time: one file for each kind of request, with its share.
write_requests() {
	mkdir "$BASE/load"
	printf '%s\n' '\set n random(1, 100000000)' "BEGIN; SELECT FROM idempotent_begin('orders', 'order ' || :n, retention => '2 minutes');" \
		"SELECT FROM idempotent_finish('orders', 'order ' || :n, '{\"paid\": true}'); COMMIT;" >"$BASE/load/new"
	printf '%s\n' "SELECT FROM idempotent_begin('orders', 'done', '1');" >"$BASE/load/replay"
	printf '%s\n' '\set n random(1, 100000000)' "SELECT FROM idempotent_call('orders', 'call ' || :n, 'SELECT 1');" >"$BASE/load/call"
	printf '%s\n' "SELECT FROM idempotent_try_begin('orders', 'done', '2');" >"$BASE/load/mismatch"
	printf '%s\n' "SELECT FROM idempotent_try_begin('orders', 'late', first_sent => now() - interval '2 days');" >"$BASE/load/late"
	printf '%s\n' '\set n random(1, 100000000)' "SELECT FROM idempotent_begin('orders', 'lease ' || :n, lease => '1 minute');" '\sleep 1 s' \
		"SELECT FROM idempotent_finish('orders', 'lease ' || :n, attempt => 1);" >"$BASE/load/lease"
	printf '%s\n' '\set n random(1, 100000000)' "SELECT FROM idempotent_begin('orders', 'dies ' || :n, lease => '10 seconds');" >"$BASE/load/dies"
}

run_requests() {
	local share shares=()
	for share in new@600 replay@60 call@120 lease@40 mismatch@4 late@2 dies@4; do shares+=(-f "$BASE/load/$share"); done
	"$BIN/pgbench" -n -c 8 -j 1 --rate 40 -T $((MINUTES * 60)) "${shares[@]}" >"$BASE/load.log" 2>&1 &
	PIDS+=($!)
	LOAD=$!
}

# Each retry that comes waits; some clients ask with try_begin instead and are turned away.
retry_the_held_key() { open_session "retry$1" "BEGIN; SELECT FROM idempotent_begin('orders', 'slow'); ROLLBACK;"; }
ask_for_the_held_key() { psql -c "DO \$\$BEGIN FOR n IN 1..$1 LOOP PERFORM idempotent_try_begin('orders', 'slow'); END LOOP; END\$\$"; }
expire_keys() {
	psql -c "INSERT INTO idempotency_keys SELECT (jsonb_populate_record(k, jsonb_build_object('id', gen_random_uuid(),
		'key', 'old ' || n || clock_timestamp(), 'expires_at', now() - interval '61 minutes'))).*
		FROM idempotency_keys k, generate_series(1, 40) n WHERE k.key = 'done'"
}
resume() {
	psql -o "$BASE/void" 2>>"$BASE/load.log" \
		-c "SELECT idempotent_finish('orders', key, attempt => attempt) FROM idempotent_resume('1 minute', 1)"
}
# A claim that the batch has taken over, and then its first worker wakes up.
overtake() {
	printf '%s\n' "SELECT key AS taken, attempt FROM idempotent_resume('1 minute', 1) \\gset" \
		"SELECT idempotent_finish('orders', :'taken', attempt => :attempt - 1);" \
		"SELECT idempotent_finish('orders', :'taken', attempt => :attempt);" |
		"$BIN/psql" -XAtq >>"$BASE/load.log" 2>&1
}
try_in_vain() {
	printf '%s\n' "SELECT attempt FROM idempotent_begin('orders', 'fails', lease => '1 minute') \\gset" \
		"SELECT idempotent_release('orders', 'fails', :attempt, 'the provider is down', '0');" | psql -o "$BASE/void"
}
# Claims of a worker that died four minutes before the picture begins.
leave() {
	psql -o "$BASE/void" -c "SELECT count(idempotent_begin('orders', 'left ' || n, lease => '1 hour')) FROM generate_series(1, 3) n" \
		-c "UPDATE idempotency_claims SET lease_until = now() - interval '4 minutes' WHERE key LIKE 'left %'"
}
begin_without_finish() { psql -c "SELECT FROM idempotent_begin('orders', 'bug')" 2>>"$BASE/load.log"; }
park() {
	psql -o "$BASE/void" -c "SELECT FROM idempotent_begin('orders', 'parked $1', lease => '1 hour')" \
		-c "SELECT idempotent_park('orders', 'parked $1', 1, 'the provider does not know')"
}
settle() { psql -o "$BASE/void" -c "SELECT idempotent_resolve('orders', 'parked $1', reason => 'asked the provider', response => '1')"; }
act() {	# second
	case $1 in
		1) leave ;;
		40 | 55 | 75 | 90 | 110) try_in_vain ;;
		60) open_session hangs "BEGIN; SELECT FROM idempotent_begin('orders', 'slow');" ;;
		85) open_session other "BEGIN; SELECT FROM idempotent_begin('orders', 'other'); SELECT pg_sleep(45); ROLLBACK;" ;;
		88 | 91 | 97) open_session "other$1" "BEGIN; SELECT FROM idempotent_begin('orders', 'other'); ROLLBACK;" ;;
		70 | 120) park "$1" ;;
		150) psql -o "$BASE/void" -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hangs'" ;;
		180) begin_without_finish; begin_without_finish; begin_without_finish ;;
		170 | 172 | 175) overtake ;;
		230) settle 70 ;;
	esac
	(($1 < 66 || $1 >= 126 || $1 % 6)) || retry_the_held_key "$1"
	(($1 < 66 || $1 >= 150)) || ask_for_the_held_key $(((150 - $1) / 4))
	(($1 < 30 || $1 >= 200)) || expire_keys
	(($1 < 200)) || psql -o "$BASE/void" -c "SELECT idempotent_prune(150)"
	(($1 < 140)) || resume
}

make_trouble() {
	local second start=$SECONDS
	for ((second = 0; second < MINUTES * 60; second++)); do
		act "$second"
		# This paces the load; nothing waits for anything here.
		while ((SECONDS - start <= second)); do sleep 0.1; done
	done
	wait "$LOAD"
}

draw_picture() {	# folder
	local -x PGDATABASE=shop HOME=$BASE
	psql -o "$BASE/void" -c "BEGIN; SELECT FROM idempotent_begin('orders', 'done', '1');
		SELECT FROM idempotent_finish('orders', 'done', '1'); COMMIT"
	write_requests
	run_requests
	make_trouble
	python3 "$TOP/test/monitoring/dashboard.py" "$FILES/dashboard.json" "$PROMETHEUS" --datname shop --seconds $((MINUTES * 60)) \
		--page "$BASE/dashboard.html" >"$BASE/void" || exit 1
	/usr/bin/chromium --headless --no-sandbox --disable-gpu --user-data-dir="$BASE/chromium" --hide-scrollbars --window-size=1206,1000 \
		--screenshot="$1/monitoring.png" "file://$BASE/dashboard.html" >"$BASE/chromium.log" 2>&1
	cp "$BASE/dashboard.html" "$1/"
	ok "there is a picture" test -s "$1/monitoring.png"
}
