# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# First requests through a client's statements: each a round trip, or all of them in a pipeline of libpq.

measure_statements() {
	local names=(none bare by_hand by_hand_trips by_lock idempotency idempotency_trips call three rocket)
	fresh
	turns statements "$WORK/src/bench/client" "" "${names[@]}"
	say "## First requests through a client's statements" '' \
		"Each statement is a round trip, over a Unix socket, $clients connections. One bare INSERT more takes four, the" \
		'extension five as by hand, the advisory lock six, `idempotent_call` one, three transactions five with three' \
		'commits, rocket-rides eight with two commits. In three round trips means: BEGIN and begin are sent together, so' \
		'are finish and COMMIT. Begin is awaited before the work, so nothing of the protection is lost.' ''
	tps_table statements bare none
}

# The same statements, all sent before the first answer is read.
pipeline_scripts() {	# folder, names…
	local name
	for name in "${@:2}"; do
		{
			grep '^\\set' "$TOP/bench/client/$name.sql"
			say '\startpipeline'
			grep -v '^\\set' "$TOP/bench/client/$name.sql"
			say '\endpipeline'
		} >"$1/$name.sql"
	done
}

measure_pipeline() {
	local names=(none bare by_hand by_lock idempotency) folder
	folder=$(scripts pipeline)
	pipeline_scripts "$folder" "${names[@]}"
	fresh
	turns pipeline "$folder" "" "${names[@]}"
	say '## First requests in a pipeline' '' \
		"The same statements in libpq's pipeline mode: one round trip for all of them, $clients connections. Where the" \
		'answer of begin is not awaited, a retry would do the work again and then fail at finish: a pipeline suits those' \
		'who see few retries.' ''
	tps_table pipeline bare none
}
