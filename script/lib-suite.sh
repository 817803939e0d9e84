# shellcheck shell=bash
#
# The suite under observation: its three kinds run one by one, a verdict on each test, and one on what the logs contain.
#
# Builds on lib.sh. Where script/test asks whether the tests pass, these checks ask what else happened meanwhile, so that
# a test file is the unit that is counted.

PASSED=0 FAILED=0

suite_say() { printf '\n== %s\n' "$*"; }
suite_pass() { PASSED=$((PASSED + 1)); printf '%sok%s      %s\n' "$GREEN" "$PLAIN" "$1"; }
suite_fail() { FAILED=$((FAILED + 1)); printf '%sFAILED%s  %s\n' "$RED" "$PLAIN" "$1"; }

# Called on every way out: a set-up that failed is a failure, and the last line says so.
suite_conclude() {
	local status=$?
	close_work
	[ "$status" = 0 ] || [ "$FAILED" -gt 0 ] || FAILED=1
	printf '\n%d passed, %d failed\n' "$PASSED" "$FAILED"
	[ "$status" -le 128 ] || exit "$status"		# a signal's
	if [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]; then exit 0; else exit 1; fi
}

suite_open() {
	open_work suite_conclude
	suite_settings >>"$TEMP_CONFIG"
}

# The settings of every server of a run. The error's code belongs into the log: an internal error (XX000) is a finding
# even where a test expected an error.
suite_settings() { printf '%s\n' "log_line_prefix = '%m [%p] %e '"; }

suite_start() { start_server "fsync = off" "$@"; }	# settings…

# A shutdown that lets every backend end by itself: what a backend does at its exit is part of what is checked.
suite_stop() {	# name of the log to keep
	as_user "$PGBIN/pg_ctl" -s -t 600 -D "$DATA" -m fast stop
	mv "$WORK/server.log" "$WORK/server-$1.log"
	rm -rf "$DATA"
}

suite_make() { as_user make -C "$WORK/src" PG_CONFIG="$PG_CONFIG" with_llvm=no "$@"; }

# After a crash in one kind of tests the next one finds the server in its recovery.
suite_wait_ready() {
	local try
	for ((try = 0; try < 300; try++)); do
		"$PGBIN/pg_isready" -q && return
		sleep 1
	done
}

# One kind of tests by itself, since make would stop at the first kind that fails.
suite_kind() {	# regress, isolation or tap; label; further variables for make…
	local out=$WORK/$1.out status=0
	local -a off
	case $1 in
		regress) off=(ISOLATION= TAP_TESTS=) ;;
		isolation) off=(REGRESS= TAP_TESTS=) ;;
		tap) off=(REGRESS= ISOLATION=) ;;
	esac
	suite_wait_ready
	suite_make "${off[@]}" "${@:3}" installcheck >"$out" 2>&1 </dev/null || status=$?
	suite_count "$2 $1" "$status" <"$out"
	[ "$status" = 0 ] || suite_explain "$out"
}

# The drivers name each test and its end: "test x ... ok" up to 15, "ok 1 - x 12 ms" from 16, prove "t/x.pl .. ok".
suite_count() {	# label, driver's status
	local line test end seen=$FAILED any=
	while IFS= read -r line; do
		if [[ $line =~ ^test\ +([^ ]+)\ +\.\.\.\ (ok|FAILED) ]] ||
			[[ $line =~ ^[^[:space:]]*/([^/[:space:]]+)\.pl\ \.+\ (ok|Dubious|Failed|No\ subtests) ]]; then
			test=${BASH_REMATCH[1]} end=${BASH_REMATCH[2]}
		elif [[ $line =~ ^(ok|not\ ok)\ +[0-9]+\ +[-+]\ ([^ ]+)\ +[0-9]+\ ms ]]; then
			test=${BASH_REMATCH[2]} end=${BASH_REMATCH[1]}
		else
			continue
		fi
		any=1
		if [ "$end" = ok ]; then suite_pass "$1 $test"; else suite_fail "$1 $test"; fi
	done
	# A kind of which nothing ran is not a kind that passed.
	[ "$any" ] || suite_fail "$1: no test ran"
	[ "$2" = 0 ] || [ "$seen" != "$FAILED" ] || suite_fail "$1: make installcheck"
}

suite_explain() {	# driver's output
	tail -n 25 "$1"
	find "$WORK/src" -name regression.diffs -exec head -n 120 {} \; -exec rm {} \;
}

# The pgTAP tests without those that make a thousand rows and more: on a server that is a hundred times slower that is a
# matter of hours, and shows nothing that a few rows do not.
suite_small_tests() {
	grep -LE 'generate_series\(1, *[0-9]{4,}|IN 1\.\.[0-9]{4,}|: thousands of rows\.$' "$WORK"/src/test/sql/*.sql | sed 's,.*/,,; s,\.sql$,,'
}

suite_all() {	# label
	suite_kind regress "$1"
	suite_kind isolation "$1"
	suite_kind tap "$1"
}

# What no log may contain. The TAP tests kill backends on purpose, so that a signal counts there only when it is one that
# a program gets by its own fault; and what the server logs of a cut connection has XX000 where the system's error has no
# code of its own; and Citus has none for a node that it cannot reach.
suite_judge_logs() {	# label
	local found wire='\] XX000 LOG:  could not (send data to|receive data from) client: ' citus='_citus[^/:]*\.log:.*\] XX000 '
	found=$({
		grep -nHE 'TRAP:|PANIC:|\] XX000 |terminated by signal' "$WORK"/server-*.log
		[ ! -d "$WORK/src/tmp_check" ] || find "$WORK/src/tmp_check" -name '*.log' -exec \
			grep -nHE 'TRAP:|PANIC:|\] XX000 |terminated by signal (4|6|7|8|11):' {} +
	} | grep -vE "$wire|$citus")
	if [ "$found" ]; then
		printf '%s\n' "${found//$WORK\//}" | head -n 60
		suite_fail "$1 logs"
	else
		suite_pass "$1 logs: no failed assertion, panic, internal error or crash"
	fi
	rm -rf "$WORK"/server-*.log "$WORK/src/tmp_check"
}

# --- a server from lib-source.sh ---

# Copies it below $WORK, where it is an installation of its own, and installs the extension into the copy. The folder of
# libraries is named, because the programs would otherwise load libpq from where it was first installed.
suite_build_on() {	# prefix
	local prefix=$1
	mkdir -p "$WORK/root${prefix%/*}"
	cp -r "$prefix" "$WORK/root$prefix" || die "could not copy $prefix"
	copy_project "$WORK/src"
	! is_root || chown -hR postgres: "$WORK/src" "$WORK/root"
	PGBIN=$WORK/root$prefix/bin
	PG_CONFIG=$PGBIN/pg_config
	LD_LIBRARY_PATH=$WORK/root$prefix/lib
	export LD_LIBRARY_PATH
	suite_make -s -j2 all install >"$WORK/build.log" 2>&1 ||
		{ tail -n 40 "$WORK/build.log" >&2; die "the extension does not build"; }
	grep 'warning:' "$WORK/build.log" >&2 || true
}
