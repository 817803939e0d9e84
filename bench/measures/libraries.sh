# shellcheck shell=bash
#
# The same by Node: real libraries that can be installed, and by their side what an application does with pg alone.

measure_libraries() {
	local measure program=$WORK/src/bench/libraries/run
	say '## Libraries, from Node' ''
	if [ ! -e "$program" ]; then
		say '(Skipped: there is no bench/libraries/run.)'
		return
	fi
	if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
		say '(Skipped: there is no Node with npm here.)'
		return
	fi
	need_redis
	fresh
	as_user "$program" --rounds "$rounds" --seconds "$short" --clients "$clients" >"$WORK/libraries" 2>"$WORK/libraries.err" ||
		die "bench/libraries/run failed: $(tail -n 5 "$WORK/libraries.err")"
	awk -v to="$FIGURES/libraries" '{ print $2, $3, $4, $5, $6, $7 >(to "." $1) }' "$WORK/libraries"
	say "One process of Node, $clients requests at a time. Each contender is its own best self; what each does not guarantee" \
		'is told in [contenders.md](contenders.md).'
	for measure in first replay; do
		[ "$measure" = first ] && say '' 'First requests:' '' || say '' 'Replays:' ''
		# shellcheck disable=SC2046	# a word for each
		tps_table "libraries.$measure" $(libraries_bases "$FIGURES/libraries.$measure")
	done
}

# Whom to compare with, as far as they had turns.
libraries_bases() {	# file of turns
	local base
	for base in bare none; do
		! grep -q "^[0-9]* $base " "$1" || echo "$base"
	done
}

# Debian's package starts a service. Nobody asked for that one here.
need_redis() {
	is_installed redis-server && return
	[ ! -d /run/systemd/system ] || as_root systemctl -q mask --runtime redis-server
	need_packages redis-server
	[ ! -d /run/systemd/system ] || as_root systemctl -q unmask --runtime redis-server
}
