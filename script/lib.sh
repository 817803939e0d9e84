# shellcheck shell=bash
#
# Set-up shared by the scripts: packages, a private installation of PostgreSQL with this extension in it, a server that
# is thrown away. Sourced, never run.
#
# Debian's own tools install, build and run. What stands here is what they have no word for: a machine on which nothing is
# installed yet, and a server that goes with the script that started it, or stays for --keep. The extension is installed
# into a folder of its own, so that the machine's PostgreSQL stays as it is: script/settings.sh.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=
# shellcheck source=script/settings.sh
. "$TOP/script/settings.sh"

# What is kept between runs: builds of the extension, other Debians, servers of lib-source.sh.
if [ "$(id -u)" = 0 ]; then
	IDEMPOTENCY_CACHE=${IDEMPOTENCY_CACHE:-${XDG_CACHE_HOME:-/var/cache}/idempotency}
else
	IDEMPOTENCY_CACHE=${IDEMPOTENCY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/idempotency}
fi

# A command that takes the signal for itself and goes on, as apt does, must not make the script go on.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then
	BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
	# shellcheck disable=SC2034	# used by the scripts that source this file
	BOLD='' DIM='' RED='' GREEN='' CYAN='' PLAIN=''
fi

note() { printf '%s\n' "$DIM$*$PLAIN"; }
die() { printf '%s\n' "${@/#/$RED}" | sed "s/\$/$PLAIN/" >&2; exit "${DIE_STATUS:-1}"; }

is_root() { [ "$(id -u)" = 0 ]; }

# Only packages and other Debian systems need root.
as_root() {
	if is_root; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root or sudo: $*"
	fi
}

can_be_root() { is_root || command -v sudo >/dev/null; }

# The server refuses to run as root. In $WORK, since the caller's folder may be one that the user cannot enter.
as_user() {
	if is_root; then
		(cd "$WORK" && exec runuser -u postgres -- "$@")
	else
		(cd "$WORK" && exec "$@")
	fi
}

# --- packages ---

is_installed() { [ "$(dpkg-query -Wf '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# A repository that cannot be reached is no reason to stop: the packages may come from the others.
refresh_packages() {
	[ -z "${PACKAGES_REFRESHED-}" ] || return 0
	PACKAGES_REFRESHED=yes
	as_root apt-get -qq update || printf 'apt-get update failed, going on with what is known\n' >&2
}

# Debian's packages make a cluster and start services. Nobody asked for those here, so they are switched off for as long as
# the installation takes.
CLUSTER_CONF=/etc/postgresql-common/createcluster.conf
SERVICES=(pgbouncer prometheus prometheus-postgres-exporter)

without_services() (
	keep=$(mktemp)
	# shellcheck disable=SC2064	# the name is known now
	trap "restore_services '$keep'" EXIT
	if [ -e "$CLUSTER_CONF" ]; then
		cp "$CLUSTER_CONF" "$keep" && as_root pg_conftool "$CLUSTER_CONF" set create_main_cluster off
	fi
	[ ! -d /run/systemd/system ] || as_root systemctl -q mask --runtime "${SERVICES[@]}"
	"$@"
)

restore_services() {	# the copy of the setting
	[ ! -s "$1" ] || as_root cp "$1" "$CLUSTER_CONF"
	[ ! -d /run/systemd/system ] || as_root systemctl -q unmask --runtime "${SERVICES[@]}"
	rm -f "$1"
}

# What apt-get says of its progress, as a line that is rewritten, or as a line for each fifth where that cannot be.
show_progress() {
	local kind percent rest last=0
	trap '' INT TERM HUP		# apt ends first
	while IFS=: read -r kind _ percent rest; do
		percent=${percent%%.*}
		[[ $percent =~ ^[0-9]+$ ]] || continue
		if [ -t 2 ]; then
			printf '\r\e[K%s %3d %%  %s' "$kind" "$percent" "${rest:0:60}" >&2
		elif [ "$kind" = pmstatus ] && [ $((percent / 20)) != "$last" ]; then
			last=$((percent / 20))
			printf '... %d %%\n' "$percent" >&2
		fi
	done
	[ ! -t 2 ] || printf '\r\e[K' >&2
}

# apt's progress has a pipe of its own, which sudo would close if it were opened here.
# shellcheck disable=SC2016	# the shell inside expands them
apt_install() {
	local folder pipe status=0
	folder=$(mktemp -d)
	mkfifo "$folder/progress"
	# Held open here, so that neither end waits for the other to come.
	exec {pipe}<>"$folder/progress"
	show_progress <"$folder/progress" {pipe}>&- &
	as_root sh -c 'progress=$1 && shift && exec "$@" 3>"$progress"' - "$folder/progress" \
		env DEBIAN_FRONTEND=noninteractive apt-get -qqy -o APT::Status-Fd=3 --no-install-recommends install "$@" >"$folder/log" 2>&1 ||
		status=$?
	exec {pipe}>&-
	wait $!
	[ "$status" = 0 ] || tail -n 20 "$folder/log" >&2
	rm -rf "$folder"
	return "$status"
}

install_missing() {	# packages…
	local package missing=()
	command -v apt-get >/dev/null || die "this script needs Debian; elsewhere use make, make install, make installcheck"
	for package; do
		is_installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	can_be_root ||
		die "these packages are missing, which root must install:" "  apt-get install --no-install-recommends ${missing[*]}"
	note "installing ${missing[*]}"
	refresh_packages
	# It comes first, as it has the setting that keeps the others from making a cluster.
	case " ${missing[*]}" in
		*" postgresql-"[0-9]*) is_installed postgresql-common || apt_install postgresql-common || return 1 ;;
	esac
	without_services apt_install "${missing[@]}"
}

need_packages() { install_missing "$@" || die "could not install all of: $*"; }

# What only some tests use. Those fail by themselves where it is not to be had, or are skipped where this Debian has no such
# package at all: ABSENT names those.
ABSENT=()
want_packages() {
	local package wanted=() missing=()
	for package; do
		if is_installed "$package" || apt_has "$package"; then
			wanted+=("$package")
		else
			ABSENT+=("$package")
			note "there is no package $package here"
		fi
	done
	if ! can_be_root; then
		for package in "${wanted[@]}"; do is_installed "$package" || missing+=("$package"); done
		[ ${#missing[@]} = 0 ] || note "some tests will fail, for want of packages that root must install:" \
			"apt-get install --no-install-recommends ${missing[*]}"
		return
	fi
	install_missing "${wanted[@]}" && return
	for package in "${wanted[@]}"; do
		install_missing "$package" || note "could not install $package"
	done
}

apt_has() { [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; }

# Sets NATIVE to the version that this Debian calls "postgresql", or to the one that the caller wants instead of it.
find_native_version() {
	NATIVE=${IDEMPOTENCY_PG:-$(apt_native_version)}
	if [ -z "$NATIVE" ]; then
		refresh_packages
		NATIVE=$(apt_native_version)
	fi
	[ -n "$NATIVE" ] || die "apt knows no package postgresql: this script needs Debian"
}

apt_native_version() {
	apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p'
}

# --- other Debians ---

# The mirror of the suite that this machine runs.
host_mirror() {
	local codename mirror
	codename=$(host_codename)
	# shellcheck disable=SC2016	# apt expands them
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v release="$codename" '$2 == release && $3 == "main" { print $1; exit }')
	[ -n "$mirror" ] || die "this machine's apt has no mirror of its own release \"$codename\""
	printf '%s\n' "$mirror"
}

# shellcheck source=/dev/null
host_codename() { (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME-}"); }

# By names that outlive releases, the most stable first. No table of versions: a suite may drop one any day.
SUITES=(oldstable stable testing unstable experimental)

# An apt that sees all suites of the mirror at once, with lists of its own.
suites_apt() {	# apt's program, arguments…
	local state=$IDEMPOTENCY_CACHE/suites
	"$1" -q -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$state/lists" \
		-o "Dir::Cache=$state/cache" -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none "${@:2}"
}

update_suites() {
	local state=$IDEMPOTENCY_CACHE/suites mirror suite key=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -z "$(find "$state/updated" -mmin -720 2>/dev/null)" ] || return 0
	mirror=$(host_mirror) || exit 1
	mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
	for suite in "${SUITES[@]}"; do
		printf 'deb %s %s %s main\n' "$([ ! -e "$key" ] || echo "[signed-by=$key]")" "$mirror" "$suite"
	done >"$state/sources.list"
	note "looking which Debian has what" >&2
	suites_apt apt-get -o "APT::Sandbox::User=$(id -un)" update >"$state/log" 2>&1 ||
		{ tail -n 10 "$state/log"; note "not every suite could be read, going on with the others"; } >&2
	touch "$state/updated"
}

# What script/debian calls the Debian that has a version. The PostgreSQL project's packages for this machine's own release
# come first where they can be reached, as they are newer.
suite_of() {	# version
	local found suite
	if pgdg_has "$1"; then
		printf '%s-pgdg-%s\n' "$(host_codename)" "$1"
		return
	fi
	update_suites
	found=$(suites_apt apt-cache madison "postgresql-$1")
	for suite in "${SUITES[@]}"; do
		case $found in *" $suite/main "*) codename_of "$suite"; return ;; esac
	done
	die "no Debian has PostgreSQL $1, and $PGDG cannot be reached or has it neither"
}

# A release keeps this name. The two that never become one have no other.
codename_of() {
	case $1 in
		unstable) echo sid ;;
		experimental) echo experimental ;;
		*) sed -n 's/^Codename: *//p' "$IDEMPOTENCY_CACHE"/suites/lists/*_dists_"$1"_InRelease | head -n 1 ;;
	esac
}

PGDG=http://apt.postgresql.org/pub/repos/apt
pgdg_has() {	# version; whose component has it whether it is released or not
	local helper=/usr/lib/apt/apt-helper file status=1
	file=$(mktemp -d)
	"$helper" -o Acquire::Retries=0 -o Acquire::http::Timeout=10 download-file \
		"$PGDG/dists/$(host_codename)-pgdg/$1/binary-$(dpkg --print-architecture)/Packages.gz" "$file/Packages.gz" >/dev/null 2>&1 &&
		"$helper" cat-file "$file/Packages.gz" | grep -q "^Package: postgresql-server-dev-$1\$" && status=0
	rm -rf "$file"
	return "$status"
}

# What it takes to build the extension for a version and to run a server.
build_packages() { printf '%s\n' "postgresql-$1" "postgresql-server-dev-$1" make gcc libc6-dev perl procps; }

# pgTAP is SQL and PL/pgSQL alone, so that any version's package serves a server for which there is none yet.
pgtap_packages() {	# version
	! apt_has "postgresql-$1-pgtap" || printf '%s\n' "postgresql-$1-pgtap"
}

install_foreign_pgtap() {	# version, folder of extensions
	local package unpacked
	[ ! -e "/usr/share/postgresql/$1/extension/pgtap.control" ] || return 0
	package=$(apt-cache pkgnames postgresql- | grep -E '^postgresql-[0-9]+-pgtap$' | sort -V | tail -n 1)
	[ -n "$package" ] || { note "there is no pgTAP here"; return 0; }
	unpacked=$(mktemp -d)
	if (cd "$unpacked" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download "$package" && dpkg-deb -x ./*.deb .) >/dev/null 2>&1; then
		mkdir -p "$2" && cp "$unpacked"/usr/share/postgresql/*/extension/pgtap* "$2/"
	else
		note "could not get $package"
	fi
	rm -rf "$unpacked"
}

# --- the work folder ---

# Below /tmp and not $TMPDIR: a socket's path must be short, and the user postgres must get there. Whoever runs a server in
# it has installed the packages by now, as one of them makes that user.
open_work() {
	# What the caller has set for a server or a make of his own must not reach ours.
	unset "${!PG@}" MAKEFLAGS MAKELEVEL MFLAGS
	WORK=$(mktemp -d /tmp/idempotency.XXXXXX) || exit 1
	# shellcheck disable=SC2064	# the name is known now
	trap "${1-close_work}" EXIT
	mkdir "$WORK"/{src,home,tmp,socket}
	# Every server that is started here, by whatever program, has these settings: so PostgreSQL's own tests want it.
	export TEMP_CONFIG=$WORK/server.conf
	: >"$TEMP_CONFIG"
	export HOME=$WORK/home TMPDIR=$WORK/tmp LC_ALL=C.UTF-8 TZ=UTC
	! is_root || ! id -u postgres >/dev/null 2>&1 || chown -R postgres: "$WORK"
}

# A job and what it has started, from the leaves on.
kill_tree() {
	local child
	for child in $(pgrep -P "$1"); do
		kill_tree "$child"
	done
	kill "$1" 2>/dev/null
}

# Servers that a killed test has left behind are below $WORK too.
close_work() {
	local status=$? pidfile job
	[ -n "$WORK" ] || return "$status"
	trap '' INT TERM HUP
	for job in $(jobs -p); do
		kill_tree "$job"
	done
	if [ -n "${KEEP-}" ]; then
		keep_work
		return "$status"
	fi
	while IFS= read -r pidfile; do
		as_user "$PGBIN/pg_ctl" -s -D "${pidfile%/*}" -m immediate stop >/dev/null 2>&1
	done < <(find "$WORK" -name postmaster.pid 2>/dev/null)
	wait
	rm -rf "$WORK"
	return "$status"
}

# For a look at what is left: the server goes on running.
keep_work() {
	printf '\n'
	note "kept: $WORK; to look at: $(cd "$WORK" && find -- *.log src -maxdepth 3 \( -name regression.diffs -o -name results -o \
		-path 'src/tmp_check/log' -o -name '*.log' \) 2>/dev/null | paste -sd ' ')"
	[ ! -e "${DATA-}/postmaster.pid" ] || note "the server: $PGBIN/psql -h $WORK/socket -U postgres" \
		"(to end it: $(! is_root || printf 'runuser -u postgres -- ')$PGBIN/pg_ctl -D $DATA stop)"
}

# The files of the project as they stand, committed or not, without what git ignores; all files where there is no git.
project_files() {
	local file
	if git -c safe.directory="$TOP" -C "$TOP" rev-parse --git-dir >/dev/null 2>&1; then
		git -c safe.directory="$TOP" -C "$TOP" ls-files -coz --exclude-standard |
			while IFS= read -rd '' file; do
				[ ! -e "$TOP/$file" ] || printf '%s\0' "$file"
			done
	else
		(cd "$TOP" && find . -name .git -prune -o -type f -print0)
	fi
}

copy_project() { project_files | tar -C "$TOP" --null -T - -c | tar -C "$1" --no-same-owner -x; }

# --- the extension ---

# Builds what stands in the project and tells all servers of this run where it is, in $EXTENSION_ROOT.
build_extension() {	# version, variables for make…
	local version=$1
	shift
	PGBIN=/usr/lib/postgresql/$version/bin
	PG_CONFIG=$PGBIN/pg_config
	copy_project "$WORK/src"
	! is_root || chown -hR postgres: "$WORK/src"
	if [ $# = 0 ]; then
		install_cached "$version"
	else
		EXTENSION_ROOT=$WORK/root
		as_user mkdir "$EXTENSION_ROOT"
		install_extension "$EXTENSION_ROOT" "$@"
		install_foreign_pgtap "$version" "$EXTENSION_ROOT/usr/share/postgresql/$version/extension"
	fi
	extension_settings "$PG_CONFIG" "$EXTENSION_ROOT" >>"$TEMP_CONFIG"
}

install_extension() {	# folder, variables for make…
	as_user make -s -j2 -C "$WORK/src" PG_CONFIG="$PG_CONFIG" with_llvm=no WERROR="${WERROR-}" DESTDIR="$1" "${@:2}" \
		all install >"$WORK/build.log" 2>&1 ||
		{ tail -n 40 "$WORK/build.log" >&2; die "the extension does not build"; }
}

# By what it is built from, so that the same sources are built once. What nobody has asked for in a week goes.
install_cached() {	# version
	local builds=$IDEMPOTENCY_CACHE/builds key
	key=$({
		"$PG_CONFIG" --version
		printf '%s\n' "${WERROR-}"
		dpkg-query -W "postgresql-server-dev-$1" gcc
		cd "$WORK/src" && cat Makefile idempotency.control idempotency--*.sql idempotency.c src/*.[ch]
	} | sha256sum | cut -c1-16)
	EXTENSION_ROOT=$builds/$1-$key
	mkdir -p "$builds" || die "cannot write to $IDEMPOTENCY_CACHE"
	find "$builds" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} +
	if [ ! -d "$EXTENSION_ROOT" ]; then
		as_user mkdir "$WORK/root"
		install_extension "$WORK/root"
		install_foreign_pgtap "$1" "$WORK/root/usr/share/postgresql/$1/extension"
		# Another run may have been faster.
		mv -T "$WORK/root" "$EXTENSION_ROOT" 2>/dev/null || [ -d "$EXTENSION_ROOT" ] || die "cannot write to $builds"
	fi
	touch "$EXTENSION_ROOT"
}

# --- the server ---

# It listens on its own Unix socket alone, so any port number is free.
start_server() {
	DATA=$WORK/data
	export PGHOST=$WORK/socket PGPORT=5432 PGUSER=postgres PGDATABASE=postgres PATH=$PGBIN:$PATH
	as_user "$PGBIN/initdb" -D "$DATA" -A trust -U postgres -E UTF8 --no-sync >"$WORK/initdb.log" 2>&1 ||
		{ tail -n 20 "$WORK/initdb.log" >&2; die "initdb failed"; }
	# shellcheck disable=SC2016	# the shell inside expands them
	printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$PGHOST'" "max_prepared_transactions = 20" "$@" |
		cat "$TEMP_CONFIG" - | as_user sh -c 'cat >>"$1/postgresql.conf"' - "$DATA"
	boot_server
}

boot_server() {
	as_user "$PGBIN/pg_ctl" -s -w -D "$DATA" -l "$WORK/server.log" start >"$WORK/pg_ctl.log" 2>&1 ||
		{ tail -n 20 "$WORK/server.log" >&2; die "the server did not start"; }
}
