# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# A storm: a hundred connections send the same new key at the same time. How long until all of them have the answer?

storm_size=100 storm_work=50

measure_storm() {
	local names=(by_hand by_lock idempotency call three rocket) folder round name
	folder=$(scripts storm)
	fresh
	storm_work_takes "PERFORM pg_sleep(${storm_work}e-3);"
	for ((round = 1; round <= rounds; round++)); do
		for name in "${names[@]}"; do
			storm "$round" "$name" "$folder/$name.sql"
		done
	done
	storm_work_takes ''
	say "## A storm of $storm_size clients on one key" '' \
		"$storm_size connections send the same new key at the same moment; the work takes $storm_work ms. Milliseconds beyond" \
		'the work until the last of them has its answer. The work was done once in each storm, which is checked. A client' \
		'that is told to come again does so after 10 ms.' ''
	stats table "$FIGURES/storm" 'ms beyond the work' 1 0 by_hand
}

# The work of setup.sql, and something before it.
storm_work_takes() {	# a statement in PL/pgSQL
	sed -n '/^CREATE FUNCTION work()/,/^END \$\$;/p' "$TOP/bench/setup.sql" |
		sed "s/^CREATE FUNCTION/CREATE OR REPLACE FUNCTION/; s/^BEGIN\$/BEGIN $1/" | sql -f - || die "the work could not be made slower"
}

storm() {	# round, contender, file for the script
	local call="SELECT pay_$2" gate work opened
	case $2 in
		three | rocket) call="CALL procedure_$2" ;;
	esac
	# The first call is for the caches: the key of the round before, which is finished.
	say "$call('storm-$2-$(($1 - 1))');" 'SELECT pg_advisory_lock_shared(1);' 'SELECT pg_advisory_unlock_shared(1);' \
		"$call('storm-$2-$1');" >"$3"
	[ "$1" != 1 ] || sql_or_die -c "$call('storm-$2-0')"
	work=$(sql -c 'SELECT count(*) FROM charges')
	storm_gate >"$WORK/gate" &
	gate=$!
	until [ "$(sql -c "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'")" = 1 ]; do
		sleep 0.05
	done
	run "$3" "" -c $storm_size -t 1 >/dev/null
	wait "$gate" || die "the storm's gate failed"
	[ "$(sql -c "SELECT count(*) - $work FROM charges")" = 1 ] || die "$2: the work was not done once in a storm"
	opened=$(head -n 1 "$WORK/gate")
	cat "$WORK"/tmp/log.* | awk -v round="$1" -v name="$2" -v opened="$opened" -v work="$storm_work" '
		{ ended = $5 + $6 / 1e6; if (ended > last) last = ended }
		END { printf "%s %s %.1f\n", round, name, (last - opened) * 1000 - work }' >>"$FIGURES/storm"
}

# Holds everybody back until all have arrived, and tells when it let them go.
storm_gate() {
	sql <<-SQL
		SELECT FROM pg_advisory_lock(1);
		DO \$\$ BEGIN
			WHILE (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted) < $storm_size LOOP
				PERFORM pg_sleep(0.02);
			END LOOP;
			PERFORM pg_sleep(0.1);
		END \$\$;
		SELECT extract(epoch FROM clock_timestamp());
		SELECT FROM pg_advisory_unlock(1);
	SQL
}
