# shellcheck shell=bash
#
# A server that is thrown away, and the counting, for the programs of this folder. Sourced; not executable, so that
# script/test passes over it.
#
# PG_CONFIG names an installation with the extension in it, and TEMP_CONFIG a file of settings with which its servers find
# the extension where it is elsewhere; the server refuses to run as root. A program ends with "exit" whenever it likes: the last line is "N passed, N failed" on every way out, and a way out that nobody planned is
# a failure.

# shellcheck disable=SC2034	# used by the programs that source this file
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BIN=$("${PG_CONFIG:-pg_config}" --bindir) || exit 1
# shellcheck source=script/settings.sh
. "$TOP/script/settings.sh"
# What the caller has set for a server of his own must not reach ours.
unset "${!PG@}"
PG_CONFIG=$BIN/pg_config

PASSED=0 FAILED=0 LEFT_OUT=0 PLANNED=
PIDS=()
BASE=$(mktemp -d /tmp/idempotency-check.XXXXXX) || exit 1

conclude() {
	local status=$? pid
	trap '' INT TERM HUP
	for pid in "${PIDS[@]}"; do
		kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
	done
	[ ! -e "$BASE/data/postmaster.pid" ] || "$BIN/pg_ctl" -s -D "$BASE/data" -m immediate stop
	rm -rf "$BASE"
	[ "$PLANNED" != skipped ] || { printf 'skipped: %s\n' "$SKIPPED"; exit 0; }
	[ -n "$PLANNED" ] || FAILED=$((FAILED + 1))
	printf '\n%d passed, %d failed' "$PASSED" "$FAILED"
	[ "$LEFT_OUT" = 0 ] || printf ', %d skipped' "$LEFT_OUT"
	echo
	[ "$status" -le 128 ] || exit "$status"		# a signal's
	if [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]; then exit 0; else exit 1; fi
}
trap conclude EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

pass() { PASSED=$((PASSED + 1)); printf 'ok      %s\n' "$1"; }
fail() { FAILED=$((FAILED + 1)); printf 'FAILED  %s\n' "$1"; }

is() {	# got, wanted, what it protects
	if [ "$1" = "$2" ]; then pass "$3"; else fail "$3: got \"$1\", wanted \"$2\""; fi
}

ok() {	# what it protects, command…
	if "${@:2}"; then pass "$1"; else fail "$1"; fi
}

# The end as planned; without it the check has failed.
done_testing() { PLANNED=yes; exit; }

# The whole check, said plainly.
skip() { PLANNED=skipped SKIPPED=$1; exit 0; }

# A part of it.
leave_out() { LEFT_OUT=$((LEFT_OUT + 1)); printf 'SKIPPED %s\n' "$1"; }

# A prerequisite is no assertion: what cannot be tested has not passed.
need() {	# command or file, Debian package that has it
	command -v "$1" >/dev/null || [ -e "$1" ] || { printf 'needs the package %s\n' "$2"; exit 1; }
}

# A port that nobody listens on now. Somebody else may take it meanwhile, so whoever uses it tries again.
free_port() { /usr/bin/perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'; }

# On its own Unix socket alone, unless LISTEN is set: then on 127.0.0.1 as well, for clients that know nothing else.
start_server() {	# lines for postgresql.conf…
	export PGHOST=$BASE PGPORT=5432
	[ -z "${LISTEN-}" ] || PGPORT=$(free_port)
	export PGUSER=postgres PGDATABASE=postgres LC_ALL=C.UTF-8 TZ=UTC
	"$BIN/initdb" -D "$BASE/data" -A trust -U postgres -E UTF8 --no-sync >"$BASE/initdb.log" 2>&1 ||
		{ tail -n 20 "$BASE/initdb.log"; exit 1; }
	printf '%s\n' "listen_addresses = '${LISTEN:+127.0.0.1}'" "port = $PGPORT" "unix_socket_directories = '$BASE'" "fsync = off" \
		"max_prepared_transactions = 20" >>"$BASE/data/postgresql.conf"
	{
		[ -z "${TEMP_CONFIG-}" ] || cat "$TEMP_CONFIG"
		[ -n "${NO_PRELOAD-}" ] || preload_settings "$PG_CONFIG"
		[ $# = 0 ] || printf '%s\n' "$@"
	} >>"$BASE/data/postgresql.conf"
	"$BIN/pg_ctl" -s -w -D "$BASE/data" -l "$BASE/server.log" start ||
		{ tail -n 20 "$BASE/server.log"; exit 1; }
}

psql() { "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 "$@"; }

# Until a query says t; half a minute at most.
wait_for() {
	local i
	for ((i = 0; i < 300; i++)); do
		[ "$(psql -c "$1")" != t ] || return 0
		sleep 0.1
	done
	return 1
}

# PgBouncer in transaction mode in front of the server; PGBOUNCER_PORT is its port, on the same sockets' folder and on
# 127.0.0.1. Somebody else may have taken a port that was free a moment ago, hence the loop.
start_pgbouncer() {
	local try i pooler=/usr/sbin/pgbouncer
	need "$pooler" pgbouncer
	printf '"%s" ""\n' "$PGUSER" >"$BASE/users"
	for try in 1 2 3 4 5; do
		PGBOUNCER_PORT=$(free_port)
		printf '%s\n' '[databases]' "* = host=$BASE port=$PGPORT" '[pgbouncer]' 'listen_addr = 127.0.0.1' \
			"listen_port = $PGBOUNCER_PORT" "unix_socket_dir = $BASE" 'auth_type = trust' "auth_file = $BASE/users" \
			'pool_mode = transaction' 'ignore_startup_parameters = extra_float_digits' >"$BASE/pgbouncer.ini"
		"$pooler" -q "$BASE/pgbouncer.ini" >>"$BASE/pgbouncer.log" 2>&1 &
		PIDS+=($!)
		for ((i = 0; i < 100; i++)); do
			! psql -h "$BASE" -p "$PGBOUNCER_PORT" -c 'SELECT' 2>/dev/null || { export PGBOUNCER_PORT; return; }
			kill -0 $! 2>/dev/null || break
			sleep 0.1
		done
	done
	tail "$BASE/pgbouncer.log"
	exit 1
}

# The examples are installed and run in a copy: their folder stays as it is.
copy_examples() {
	tar -C "$TOP" --exclude node_modules -c examples | tar -C "$BASE" -x && EXAMPLES=$BASE/examples || exit 1
}

# Needs npm, and what npm needs to find its packages.
npm_install() {	# name of an example; the working directory is there afterwards
	need node nodejs
	need npm npm
	# Where there is a home to keep a cache in, several examples share what they download.
	[ -w "${HOME-/}" ] || export HOME=$BASE
	# Debian 12's own is too old for what npm has of these clients. npm has Node itself, too.
	[ "$(node -p 'parseInt(process.versions.node)')" -ge 20 ] || newer_node
	[ -n "${EXAMPLES-}" ] || copy_examples
	cd "$EXAMPLES/$1" || exit 1
	npm_ci || { printf 'npm could not install the packages of examples/%s\n' "$1"; exit 1; }
}

# A cached list of versions may be older than the lock file.
npm_ci() {
	npm ci --prefer-offline --no-audit --no-fund --no-update-notifier --loglevel=error 2>/dev/null ||
		npm ci --prefer-online --no-audit --no-fund --no-update-notifier --loglevel=error
}

newer_node() {
	local arch=x64
	case $(uname -m) in
		x86_64) ;;
		aarch64) arch=arm64 ;;
		*) skip "needs Node 20 or later, and npm has none for $(uname -m)" ;;
	esac
	mkdir "$BASE/newer-node" && cp "$TOP"/test/newer-node/package*.json "$BASE/newer-node" && (cd "$BASE/newer-node" && npm_ci) || exit 1
	export PATH=$BASE/newer-node/node_modules/node-linux-$arch/bin:$PATH
	# It has a list of authorities of its own; the machine's may say more.
	[ ! -e /etc/ssl/certs/ca-certificates.crt ] || export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
	[ "$(node -p 'parseInt(process.versions.node)')" -ge 20 ] || { printf 'npm could not get a newer Node\n'; exit 1; }
	printf '(Node %s from npm)\n' "$(node --version)"
}

# Pack packages/node, in a copy because packing writes into the folder, and install it in the working directory from the
# packed file, as a user does.
npm_install_package() {
	local copy=$BASE/package
	mkdir "$copy" && tar -C "$TOP/packages/node" --exclude node_modules --exclude test -c . | tar -C "$copy" -x || exit 1
	(cd "$copy" && npm pack --silent --pack-destination "$BASE" >/dev/null) || exit 1
	npm install --no-save --offline --no-audit --no-fund --loglevel=error "$BASE"/idempotency-postgres-*.tgz >/dev/null || exit 1
}

# Run tests of Node's own runner and count each. They share one database, so one file after the other.
node_tests() {	# files…
	local status=0 before=$((PASSED + FAILED)) line last='' suite=''
	timeout -k 5 300 node --test --test-concurrency=1 --test-reporter=tap "$@" >"$BASE/tap" 2>&1 || status=$?
	while IFS= read -r line; do
		case $line in
			'# Subtest: '*) suite=${line#*: } ;;
			*"type: 'suite'") last='' ;;
			'ok '* | 'not ok '*) node_count "$last"; last=$line ;;
			'    ok '* | '    not ok '*) node_count "$last"; last="${line#    }"; last="${last%%- *}- $suite: ${last#*- }" ;;
		esac
	done <"$BASE/tap"
	node_count "$last"
	if [ "$status" != 0 ] || [ "$before" = $((PASSED + FAILED)) ]; then
		grep -A 20 '^ *not ok' "$BASE/tap" || cat "$BASE/tap"
		[ "$FAILED" -gt 0 ] || fail "node --test"
	fi
}

node_count() {
	case $1 in
		'not ok '*) fail "${1#*- }" ;;
		'ok '*) pass "${1#*- }" ;;
	esac
}
