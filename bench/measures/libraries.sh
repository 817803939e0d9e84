# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# The same by Node: real libraries that can be installed, and by their side what an application does with pg alone.

measure_libraries() {
	local program=$WORK/src/bench/libraries/run
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
	as_user "$program" --rounds "$rounds" --seconds "$short" --clients "$clients" --measures first,replay,storm \
		>"$WORK/libraries" 2>"$WORK/libraries.err" || die "bench/libraries/run failed: $(tail -n 5 "$WORK/libraries.err")"
	awk -v to="$FIGURES/libraries" '{ file = to "." $1; $1 = ""; print >file }' "$WORK/libraries"
	say "Node $(node --version), one process for each contender, $clients requests at a time, $short s a turn. Who they are, how each was given its" \
		'best, and what it does not guarantee is told in [libraries/README.md](libraries/README.md).' '' 'First requests:' ''
	libraries_table libraries.first
	say '' 'Replays:' ''
	libraries_table libraries.replay
	libraries_storm libraries.storm
	libraries_left_out libraries.err
}

libraries_table() {	# turns
	# shellcheck disable=SC2046	# a word for each
	tps_table "$1" $(libraries_bases "$FIGURES/$1")
}

# A hundred callers; without protection each of them does the work.
libraries_storm() {	# turns
	say '' 'A storm of a hundred callers of one new key: until each has the response or was told to come again.' '' \
		'| | ms | answered | told to come again | times that the work was done |' '|---|---:|---:|---:|---:|'
	local name column names
	mapfile -t names < <(awk '!seen[$2]++ { print $2 }' "$FIGURES/$1")
	for name in "${names[@]}"; do
		printf '| %s |' "$(stats label "$name")"
		for column in 3 4 5 6; do
			printf ' %.0f |' "$(stats median "$FIGURES/$1" "$name" "$column")"
		done
		echo
	done
}

libraries_left_out() {	# what was said
	! grep -q 'is left out' "$WORK/$1" ||
		{ echo; grep 'is left out' "$WORK/$1" | sed 's/^/- /'; }
}

# Whom to compare with: the first of these that had turns.
libraries_bases() {	# file of turns
	local base
	for base in bare none idempotency http_none http_package; do
		! grep -q "^ *[0-9]* $base " "$1" || { echo "$base"; return; }
	done
}

# Debian's package starts a service. Nobody asked for that one here.
need_redis() {
	is_installed redis-server && return
	[ ! -d /run/systemd/system ] || as_root systemctl -q mask --runtime redis-server
	need_packages redis-server >&2
	[ ! -d /run/systemd/system ] || as_root systemctl -q unmask --runtime redis-server
}
