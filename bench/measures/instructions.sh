# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Instructions for each call, counted by callgrind in a single-user backend: repeatable where time is not.

measure_instructions() {
	need_packages valgrind >&2
	fresh
	sql_or_die -c "SELECT pay_idempotency(key), pay_bare(key) FROM (VALUES ('c0ffee00-0000-4000-8000-000000000000')) v(key)"
	say '## Instructions for each call' '' \
		"Counted by callgrind in a single-user backend: what $instruction_calls calls take more than $((instruction_calls / 5)), for each one," \
		'prepared, each with its commit. The last two are a SELECT of a row by primary key, and begin on a key that is' \
		'finished, which reads such a row.' '' \
		'| | instructions | of one bare INSERT more | of no protection |' '|---|---:|---:|---:|'
	instructions_count instructions none bare by_hand by_lock idempotency call select replay
	instructions_table instructions
	say '' "The executor's part of reading a finished key, its start, run and end, without what a single-user backend takes to" \
		'print the row, which is the same for all:' '' '| | instructions | of SELECT by primary key |' '|---|---:|---:|'
	instructions_count instructions.executor select replay replay_value
	instructions_executor_table
	say '' 'Writing calls again, in a steady state, where the rows go into space whose expired rows were pruned, and BRIN has its summaries:' '' \
		'| | instructions | of one bare INSERT more | of no protection |' '|---|---:|---:|---:|'
	instructions_reuse
	instructions_count instructions.reuse none bare idempotency call
	instructions_table instructions.reuse
	instructions_aims
}

# The statement of a contender; one line, as a single-user backend wants it.
instructions_statement() {
	local key="'c0ffee00-0000-4000-8000-000000000000'"
	case $1 in
		select) say "SELECT * FROM bare WHERE id = $key" ;;
		replay) say "SELECT * FROM idempotent_begin('acct_42 POST /v1/charges (eur)', $key)" ;;
		replay_value) say "SELECT idempotent_begin('acct_42 POST /v1/charges (eur)', $key)" ;;
		*) say "SELECT pay_$1(gen_random_uuid()::text)" ;;
	esac
}

# Tables in which as many keys have expired and been removed as the calls below will write, three times over.
instructions_reuse() {
	local n=$((3 * instruction_calls))
	fresh
	sql_or_die -c "INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
			SELECT key_id('acct_42 POST /v1/charges (eur)', k), 'acct_42 POST /v1/charges (eur)', k, 1,
				'{\"id\": 123456, \"amount\": 2000, \"object\": \"charge\", \"status\": \"succeeded\", \"currency\": \"eur\"}', t, t, t
			FROM (SELECT gen_random_uuid()::text AS k, now() + CASE WHEN i <= $n THEN interval '-1 hour' ELSE interval '1 day' END AS t
				FROM generate_series(1, 2 * $n) i) k" \
		-c 'INSERT INTO bare SELECT id, scope, key, fingerprint, attempt, status, headers, response, body, first_seen_at, finished_at,
			expires_at FROM idempotency_keys' \
		-c "SELECT idempotent_prune($n)" -c "DELETE FROM bare WHERE expires_at <= now()" \
		-c "SELECT brin_desummarize_range('bare_expires_at_idx', 32 * i) FROM generate_series(0, pg_relation_size('bare') / 8192 / 64) i" \
		-c 'VACUUM idempotency_keys, bare' -c 'SELECT idempotent_prune()' -c "SELECT brin_summarize_new_values('bare_expires_at_idx')"
}

instructions_count() {	# file of figures, contenders…
	local name count file=$1
	as_user "$PGBIN/pg_ctl" -s -D "$DATA" -m fast stop
	for name in "${@:2}"; do
		count=$(instructions_of "$file" "$name") || exit 1
		echo "$name $count" >>"$FIGURES/$file"
	done
	boot_with
}

instructions_of() {	# file of figures, contender
	local few many
	few=$(count_instructions "$1" "$2" $((instruction_calls / 5))) && many=$(count_instructions "$1" "$2" "$instruction_calls") || exit 1
	calc "($many - $few) / ($instruction_calls - $((instruction_calls / 5)))" 0
}

# MOVE runs a cursor's statement and throws the rows away.
count_instructions() {	# file of figures, contender, number of calls
	local options=() statement
	statement=$(instructions_statement "$2")
	case $1 in
		*.executor)
			options=('--toggle-collect=standard_Executor*')
			yes "DECLARE c NO SCROLL CURSOR FOR $statement; MOVE ALL IN c; CLOSE c" | head -n "$3" ;;
		*)
			say "PREPARE call AS $statement"
			yes 'EXECUTE call' | head -n "$3" ;;
	esac >"$WORK/single.sql"
	as_user valgrind --tool=callgrind "${options[@]}" --callgrind-out-file=/dev/null --log-file="$WORK/tmp/callgrind.log" \
		"$PGBIN/postgres" --single -D "$DATA" postgres <"$WORK/single.sql" >"$WORK/single.out" 2>&1
	! grep -q 'ERROR:' "$WORK/single.out" || die "$2: $(grep -m 1 'ERROR:' "$WORK/single.out")"
	sed -n 's/.*Collected *: *\([0-9]*\).*/\1/p' "$WORK/tmp/callgrind.log" | grep . || die "callgrind counted nothing"
}

instructions_for() { awk -v n="$2" '$1 == n { print $2 }' "$FIGURES/$1"; }	# file of figures, contender

instructions_table() {	# file of figures
	local name count bare none
	bare=$(instructions_for "$1" bare)
	none=$(instructions_for "$1" none)
	while read -r name count; do
		printf '| %s | %d | %.2f | %.2f |\n' "$(stats label "$name")" "$count" "$(calc "$count / $bare")" "$(calc "$count / $none")"
	done <"$FIGURES/$1"
}

instructions_executor_table() {
	local name count select
	select=$(instructions_for instructions.executor select)
	while read -r name count; do
		printf '| %s | %d | %.2f |\n' "$(stats label "$name")" "$count" "$(calc "$count / $select")"
	done <"$FIGURES/instructions.executor"
}

instructions_aims() {
	local of='of one bare INSERT more' file=instructions
	aim "instructions of a protected procedure call, $of" \
		"$(calc "$(instructions_for $file idempotency) / $(instructions_for $file bare)" 3)" '' '' '<=' 0.92
	aim "instructions of idempotent_call, $of" "$(calc "$(instructions_for $file call) / $(instructions_for $file bare)" 3)" '' '' '<=' 1.1
	file=instructions.reuse
	aim "instructions of a protected procedure call in a steady state, $of" \
		"$(calc "$(instructions_for $file idempotency) / $(instructions_for $file bare)" 3)" '' '' '<=' 0.92
	file=instructions.executor
	aim "instructions of a replay, executor only, of SELECT by primary key" \
		"$(calc "$(instructions_for $file replay) / $(instructions_for $file select)" 3)" '' '' '<=' 1.6
}
