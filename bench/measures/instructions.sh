# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Instructions for each call, counted by callgrind in a single-user backend: repeatable where time is not.

measure_instructions() {
	local names=(none bare by_hand by_lock idempotency call select replay) name
	need_packages valgrind
	fresh
	sql_or_die -c "SELECT pay_idempotency(key), pay_bare(key) FROM (VALUES ('c0ffee00-0000-4000-8000-000000000000')) v(key)"
	as_user "$PGBIN/pg_ctl" -s -D "$DATA" -m fast stop
	for name in "${names[@]}"; do
		echo "$name $(instructions_of "$name")" >>"$FIGURES/instructions" || exit 1
	done
	boot_with
	say '## Instructions for each call' '' \
		"Counted by callgrind in a single-user backend: what $instruction_calls calls take more than $((instruction_calls / 5)), for each one," \
		'prepared, each with its commit. The last two are a SELECT of a row by primary key, and begin on a key that is' \
		'finished, which reads such a row.' '' \
		'| | instructions | of one bare INSERT more | of no protection |' '|---|---:|---:|---:|'
	instructions_table
}

# The statement of a contender; one line, as a single-user backend wants it.
instructions_statement() {
	local key="'c0ffee00-0000-4000-8000-000000000000'"
	case $1 in
		select) say "SELECT * FROM bare WHERE id = $key" ;;
		replay) say "SELECT * FROM idempotent_begin('acct_42 POST /v1/charges (eur)', $key)" ;;
		*) say "SELECT pay_$1(gen_random_uuid()::text)" ;;
	esac
}

instructions_of() {	# contender
	local few many
	few=$(count_instructions "$1" $((instruction_calls / 5))) && many=$(count_instructions "$1" "$instruction_calls") || exit 1
	calc "($many - $few) / ($instruction_calls - $((instruction_calls / 5)))" 0
}

count_instructions() {	# contender, number of calls
	{
		echo "PREPARE call AS $(instructions_statement "$1")"
		yes 'EXECUTE call' | head -n "$2"
	} >"$WORK/single.sql"
	as_user valgrind --tool=callgrind --callgrind-out-file=/dev/null --log-file="$WORK/tmp/callgrind.log" \
		"$PGBIN/postgres" --single -D "$DATA" postgres <"$WORK/single.sql" >"$WORK/single.out" 2>&1
	! grep -q 'ERROR:' "$WORK/single.out" || die "$1: $(grep -m 1 'ERROR:' "$WORK/single.out")"
	sed -n 's/.*Collected *: *\([0-9]*\).*/\1/p' "$WORK/tmp/callgrind.log" | grep . || die "callgrind counted nothing"
}

instructions_table() {
	local name count
	bare=$(awk '$1 == "bare" { print $2 }' "$FIGURES/instructions")
	none=$(awk '$1 == "none" { print $2 }' "$FIGURES/instructions")
	while read -r name count; do
		printf '| %s | %d | %.2f | %.2f |\n' "$(stats label "$name")" "$count" "$(calc "$count / $bare")" "$(calc "$count / $none")"
	done <"$FIGURES/instructions"
}
