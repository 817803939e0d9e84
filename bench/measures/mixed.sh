# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# A mixed load through a stored procedure: of a hundred requests five are retries of the connection's last key.

measure_mixed() {
	local names=(none bare by_hand by_lock idempotency call) folder name
	folder=$(scripts mixed)
	for name in "${names[@]}"; do
		mixed_script "SELECT pay_$name(:last::text || 'abcdefabcdefa');" >"$folder/$name.sql"
	done
	# The bare INSERT cannot be repeated. Its retry is a SELECT.
	mixed_script '\if :again > 5' "SELECT pay_bare(:last::text || 'abcdefabcdefa');" '\else' \
		"SELECT response FROM bare WHERE id = (:last::text || 'abcdefabcdefa')::uuid;" '\endif' >"$folder/bare.sql"
	fresh
	turns mixed "$folder" "" "${names[@]}"
	say '## Mixed load' '' "As first requests through a stored procedure, but five of a hundred are retries, $clients" \
		'connections. Without protection a retry does the work again; beside the bare INSERT it is a SELECT by primary key.' ''
	tps_table mixed bare none
}

mixed_script() {	# statements
	say '\set again random(1, 100)' '\if :again > 5 or :last = 0' \
		'\set last random(1000000000000000000, 9223372036854775806)' '\endif' "$@"
}
