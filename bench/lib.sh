# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Turns of contenders, and what becomes of them. Sourced by script/bench after script/lib.sh.
#
# The contenders take turns, A B C A B C ..., so that what else the machine does meets all of them. A measure writes its
# turns to $FIGURES, prints its section of results.md, and notes how far an aim was reached. Whoever looks for a
# contender finds its functions in bench/setup.sql and its statements in bench/client.

sql() { as_user "$PGBIN/psql" -XAtq -v ON_ERROR_STOP=1 "$@"; }
sql_or_die() { sql "$@" >/dev/null || die "psql failed: ${*: -1}"; }
stats() { perl "$TOP/bench/stats.pl" "$@"; }
say() { printf '%s\n' "$@"; }
calc() { awk "BEGIN { printf \"%.${2-2}f\", $1 }"; }

# Empty tables, and no checkpoint before the next forced one: whole-page images meet everybody alike.
fresh() {
	sql_or_die -c "TRUNCATE charges, bare, by_hand, by_lock, three, rocket_keys, idempotency_keys, idempotency_claims" \
		-c CHECKPOINT
}

# The server, stopped or not, started anew with options of its own, or with none.
boot_with() {	# options
	as_user "$PGBIN/pg_ctl" -s -w -t 600 -D "$DATA" -m fast -l "$WORK/server.log" -o "${1-}" restart >"$WORK/pg_ctl.log" 2>&1 ||
		{ tail -n 20 "$WORK/server.log" >&2; die "the server did not start"; }
}

# --- turns ---

# A script for each contender in a folder of the measure's own, whose name it prints.
scripts() {	# folder's name
	mkdir -p "$WORK/scripts/$1" && printf '%s\n' "$WORK/scripts/$1"
}

# pgbench with a script: transactions a second, and the latencies' percentiles in milliseconds. A client that failed fails
# the run; serialization failures are run again, as an application would.
run() {	# script, settings, pgbench's options…
	rm -f "$WORK"/tmp/log.*
	as_user env PGOPTIONS="$2" "$PGBIN/pgbench" -n -M prepared -f "$1" -j 2 -D last=0 -l --log-prefix="$WORK/tmp/log" \
		--max-tries=1000 "${@:3}" >"$WORK/pgbench.out" 2>"$WORK/pgbench.err" ||
		die "pgbench failed on $1: $(tail -n 3 "$WORK/pgbench.err")"
	printf '%s %s\n' "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$WORK/pgbench.out")" "$(cat "$WORK"/tmp/log.* | stats percentiles)"
}

# Transactions a second that leave the machine at ease: at its limit a latency tells of queues alone.
quarter_of_capacity() {	# script
	local figures
	figures=$(run "$1" "" -c "$clients" -T "$short") || exit 1
	awk '{ printf "%d", $1 / 4 }' <<<"$figures"
}

# A turn: a line with the round, the contender, transactions a second, p50, p95, p99.
turn() {	# file of turns, round, name, script, settings, pgbench's options…
	local figures
	figures=$(run "${@:4}") || exit 1
	printf '%s %s %s\n' "$2" "$3" "$figures" >>"$1"
}

# Rounds of all the contenders in turn. Each has its script in the folder.
turns() {	# file of turns, folder, settings, names…
	local round name
	for ((round = 1; round <= rounds; round++)); do
		for name in "${@:4}"; do
			turn "$FIGURES/$1" "$round" "$name" "$2/$name.sql" "$3" -c "$clients" -T "$seconds"
		done
	done
}

# --- what is printed ---

tps_table() { stats table "$FIGURES/$1" 'transactions/s' 0 1 "${@:2}"; }

# Reads the first of "median lowest highest".
ratio_cells() { stats ratio "$@" | awk '{ printf "%.2f | %.2f to %.2f", $1, $2, $3 }'; }

# An aim of the project: what is measured, the ratio, by how much it varied, the aim's sense and limit.
aim() {	# text, median, lowest, highest, <= or >=, limit
	printf '%s|%s|%s|%s|%s|%s\n' "$@" >>"$FIGURES/aims"
}

aims_table() {
	say '| what | measured | lowest to highest | aim | reached |' '|---|---:|---|---:|---|'
	awk -F'|' '{
		reached = $5 == "<=" ? $2 <= $6 : $2 >= $6
		printf "| %s | " ($2 < 0.1 ? "%.4f" : "%.2f") " | %s | %s %s | %s |\n", $1, $2, $3 == "" ? "" : sprintf("%.2f to %.2f", $3, $4),
			$5 == "<=" ? "at most" : "at least", $6, reached ? "yes" : "**no**"
	}' "$FIGURES/aims"
}

# --- charts ---

# Draws a chart twice, as SVG and as PNG, and prints the line that shows it.
chart() {	# name, what it shows, script in bench/gnuplot, gnuplot's assignments…
	local name=$1 alt=$2 script=$TOP/bench/gnuplot/$3 width height assignments
	assignments=$(printf '%s; ' "${@:4}")
	read -r width height < <(sed -n 's/^# size //p' "$script")
	{
		gnuplot -e "set terminal svg size $width,$height font 'DejaVu Sans,13' background rgb 'white'" \
			-e "set output '$OUT/charts/$name.svg'" -e "$assignments" "$script" &&
		gnuplot -e "set terminal pngcairo size $((2 * width)),$((2 * height)) font 'DejaVu Sans,13' fontscale 2 linewidth 2 pointscale 2" \
			-e "set output '$OUT/charts/$name.png'" -e "$assignments" "$script"
	} >"$WORK/gnuplot.log" 2>&1 || { cat "$WORK/gnuplot.log" >&2; die "the chart $name could not be drawn"; }
	printf '\n![%s](charts/%s.svg)\n' "$alt" "$name"
}
