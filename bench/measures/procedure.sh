# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# First requests through a stored procedure, one call each: throughput and latency.

measure_procedure() {
	local commit names=(none bare by_hand by_lock idempotency call) folder name
	folder=$(scripts procedure)
	for name in "${names[@]}"; do
		echo "SELECT pay_$name(gen_random_uuid()::text);" >"$folder/$name.sql"
	done
	say '## First requests through a stored procedure' '' "One call each, $clients connections."
	for commit in on off; do
		fresh
		turns "procedure.$commit" "$folder" "-c synchronous_commit=$commit" "${names[@]}"
		say '' "With \`synchronous_commit = $commit\`:" ''
		tps_table "procedure.$commit" bare none
	done
	procedure_aims
	throughput_chart
	latency_chart
}

procedure_aims() {
	local text='first requests: throughput, of one bare INSERT more'
	# shellcheck disable=SC2046	# three words
	aim "$text, \`synchronous_commit = on\`" $(stats ratio "$FIGURES/procedure.on" idempotency bare) '>=' 0.95
	# shellcheck disable=SC2046	# three words
	aim "$text, \`off\`" $(stats ratio "$FIGURES/procedure.off" idempotency bare) '>=' 0.95
}

throughput_chart() {
	stats bars "$FIGURES/procedure.on" >"$FIGURES/bars.on"
	stats bars "$FIGURES/procedure.off" >"$FIGURES/bars.off"
	chart throughput 'Throughput of first requests, by contender' throughput.gp "on='$FIGURES/bars.on'" "off='$FIGURES/bars.off'"
}

latency_chart() {
	chart latency 'Latency of first requests: median, 95th and 99th percentile' latency.gp "data='$FIGURES/bars.on'"
}
