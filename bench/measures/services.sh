# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# A service in Express, called over HTTP: what packages/node costs, beside express-idempotency and the shape of most middleware.

measure_services() {
	local program=$WORK/src/bench/libraries/run
	say '## A service, over HTTP' ''
	if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
		say '(Skipped: there is no Node with npm here.)'
		return
	fi
	fresh
	as_user "$program" --services --rounds "$rounds" --seconds "$short" --clients "$clients" --measures first,replay,storm \
		>"$WORK/services" 2>"$WORK/services.err" || die "bench/libraries/run failed: $(tail -n 5 "$WORK/services.err")"
	awk -v to="$FIGURES/services" '{ file = to "." $1; $1 = ""; print >file }' "$WORK/services"
	say "Express in Node $(node --version), a process for the service and one for its client, $clients requests at a time, $short s a turn." \
		'Load of the machine at the end, of others as well: '"$(cut -d' ' -f1 /proc/loadavg)"'.' '' 'First requests:' ''
	libraries_table services.first
	say '' 'Replays:' ''
	libraries_table services.replay
	libraries_storm services.storm
	libraries_left_out services.err
}
