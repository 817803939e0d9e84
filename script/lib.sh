# shellcheck shell=bash
#
# Set-up shared by the scripts: packages, a private installation of PostgreSQL with this extension in it, a server that
# is thrown away. Sourced, never run.
#
# A server finds its own files relative to its program. So the scripts install the extension into a copy of the machine's
# PostgreSQL and leave the machine's own one as it is: no right is needed beyond installing packages, runs do not get into
# each other's way, and removing the folder $WORK removes everything.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=

if [ -t 1 ]; then
	BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
	# shellcheck disable=SC2034	# used by the scripts that source this file
	BOLD='' DIM='' RED='' GREEN='' CYAN='' PLAIN=''
fi

note() { printf '%s\n' "$DIM$*$PLAIN"; }
die() { printf '%s\n' "$RED$*$PLAIN" >&2; exit "${DIE_STATUS:-1}"; }

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

without_services() (
	keep=$(mktemp)
	# shellcheck disable=SC2064	# the name is known now
	trap "restore_services '$keep'" EXIT
	if [ -e "$CLUSTER_CONF" ]; then
		cp "$CLUSTER_CONF" "$keep" && as_root pg_conftool "$CLUSTER_CONF" set create_main_cluster off
	fi
	[ ! -d /run/systemd/system ] || as_root systemctl -q mask --runtime pgbouncer
	"$@"
)

restore_services() {	# the copy of the setting
	[ ! -s "$1" ] || as_root cp "$1" "$CLUSTER_CONF"
	[ ! -d /run/systemd/system ] || as_root systemctl -q unmask --runtime pgbouncer
	rm -f "$1"
}

apt_install() {
	local log status=0
	log=$(mktemp)
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends install "$@" >"$log" 2>&1 || status=$?
	[ "$status" = 0 ] || tail -n 20 "$log" >&2
	rm -f "$log"
	return "$status"
}

install_missing() {	# packages…
	local package missing=()
	command -v apt-get >/dev/null || die "this script needs Debian; elsewhere use make, make install, make installcheck"
	for package; do
		is_installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	note "installing ${missing[*]}"
	refresh_packages
	# It comes first, as it has the setting that keeps the others from making a cluster.
	case " ${missing[*]}" in
		*" postgresql-"[0-9]*) is_installed postgresql-common || apt_install postgresql-common || return 1 ;;
	esac
	without_services apt_install "${missing[@]}"
}

need_packages() { install_missing "$@" || die "could not install what is needed"; }

# What only some tests use. They fail by themselves where it is not to be had.
want_packages() {
	local package
	install_missing "$@" && return
	for package; do
		install_missing "$package" || note "there is no $package here"
	done
}

# Sets NATIVE to the version that this Debian calls "postgresql".
find_native_version() {
	NATIVE=$(apt_native_version)
	if [ -z "$NATIVE" ]; then
		refresh_packages
		NATIVE=$(apt_native_version)
	fi
	[ -n "$NATIVE" ] || die "apt knows no package postgresql: this script needs Debian"
}

apt_native_version() {
	apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p'
}

apt_has() { [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; }

# The Debian that has a version.
suite_of() {
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		18) echo sid ;;
		*) die "no Debian is known to have PostgreSQL $1: try 15, 17 or 18" ;;
	esac
}

# What it takes to build the extension for a version and to run a server.
build_packages() { printf '%s\n' "postgresql-$1" "postgresql-server-dev-$1" make gcc libc6-dev perl procps; }

# --- the work folder ---

# Below /tmp and not $TMPDIR: a socket's path must be short, and the user postgres must get there. Whoever runs a server in
# it has installed the packages by now, as one of them makes that user.
open_work() {
	# What the caller has set for a server or a make of his own must not reach ours.
	unset "${!PG@}" MAKEFLAGS MAKELEVEL MFLAGS
	WORK=$(mktemp -d /tmp/idempotency.XXXXXX) || exit 1
	# shellcheck disable=SC2064	# the name is known now
	trap "${1-close_work}" EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir "$WORK"/{src,home,tmp,socket}
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
	while IFS= read -r pidfile; do
		as_user "$PGBIN/pg_ctl" -s -D "${pidfile%/*}" -m immediate stop >/dev/null 2>&1
	done < <(find "$WORK" -name postmaster.pid 2>/dev/null)
	wait
	rm -rf "$WORK"
	return "$status"
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

# --- the private installation ---

# A copy of the programs, and links to everything else: a program that were a link would look for its files where the
# link leads.
copy_installation() {
	local lib=/usr/lib/postgresql/$1 share=/usr/share/postgresql/$1
	if ! mkdir -p "$WORK/root$lib" "$WORK/root$share" ||
		! cp -r "$lib/bin" "$WORK/root$lib/" ||
		! cp -rs "$lib/lib" "$WORK/root$lib/" ||
		! cp -rs "$share" "$WORK/root/usr/share/postgresql/" ||
		! ln -s /usr/include "$WORK/root/usr/include"; then
		die "could not copy the installation of PostgreSQL $1"
	fi
	# An installed release of this extension must not stand in for the one that is built here.
	rm -f "$WORK/root$share/extension"/idempotency* "$WORK/root$lib/lib/idempotency.so"
	PGBIN=$WORK/root$lib/bin
	# shellcheck disable=SC2034	# used by the scripts that source this file
	PG_CONFIG=$PGBIN/pg_config
}

# Compiled with the machine's pg_config and installed below root with DESTDIR, the extension is where the copied server
# looks for it.
build_extension() {
	local version=$1
	shift
	copy_project "$WORK/src"
	copy_installation "$version"
	! is_root || chown -hR postgres: "$WORK/src" "$WORK/root"
	as_user make -s -j2 -C "$WORK/src" PG_CONFIG="/usr/lib/postgresql/$version/bin/pg_config" with_llvm=no \
		DESTDIR="$WORK/root" "$@" all install >"$WORK/build.log" 2>&1 ||
		{ tail -n 40 "$WORK/build.log" >&2; die "the extension does not build"; }
	grep 'warning:' "$WORK/build.log" >&2 || true
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
		as_user sh -c 'cat >>"$1/postgresql.conf"' - "$DATA"
	boot_server
}

boot_server() {
	as_user "$PGBIN/pg_ctl" -s -w -D "$DATA" -l "$WORK/server.log" start >"$WORK/pg_ctl.log" 2>&1 ||
		{ tail -n 20 "$WORK/server.log" >&2; die "the server did not start"; }
}
