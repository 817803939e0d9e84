# shellcheck shell=bash
#
# PostgreSQL built from Debian's source package: fetched, configured, installed into a cache, once.
#
# For checks that the packaged server cannot do: assertions and valgrind need their own build. Sourced by the scripts
# that need one; changes nothing on the machine outside the cache folder.

SOURCE_MAJOR=15

# Source and built servers are kept in $IDEMPOTENCY_CACHE. Nothing is ever installed into these: a check runs a copy.

source_say() { printf '%s\n' "$*" >&2; }

# Copies of the machine's apt sources that ask for source packages instead of binary ones. The machine's own
# configuration has often no deb-src line, and is not ours to change.
source_apt_sources() {	# folder
	local file
	for file in /etc/apt/sources.list.d/*.sources; do
		[ -e "$file" ] || continue
		sed 's/^Types:.*/Types: deb-src/' "$file" >"$1/${file##*/}"
	done
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -e "$file" ] || continue
		sed -n 's/^deb[[:space:]]/deb-src /p' "$file" >"$1/${file##*/}"
	done
}

# Fetches and unpacks the newest version whose source can be had: a mirror may carry a security update's packages
# without its source, and then the version before it serves as well. Without Debian's patches, which would install the
# libraries into the machine's own folders whatever the prefix.
source_unpack_from() {	# work folder, target folder
	local work=$1 target=$2 package=postgresql-$SOURCE_MAJOR version
	local -a apt=(-qq
		-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/sources"
		-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
		-o "APT::Sandbox::User=$(id -un)")

	mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial" "$work/download"
	source_apt_sources "$work/sources"
	apt-get "${apt[@]}" update || return 1
	for version in $(apt-cache "${apt[@]}" showsrc "$package" | sed -n 's/^Version: //p' | sort -rVu); do
		(cd "$work/download" && apt-get "${apt[@]}" source --download-only "$package=$version") || continue
		dpkg-source --no-check --skip-patches -x "$work"/download/*.dsc "$work/tree" >/dev/null &&
			mv "$work/tree" "$target" || return 1
		printf '%s\n' "$version" >"$target/.version"
		return 0
	done
	source_say "no source package of $package could be had"
	return 1
}

# The unpacked source, fetched when it is not there yet.
source_tree() {
	local tree=$IDEMPOTENCY_CACHE/pg$SOURCE_MAJOR-source work status=0

	if [ ! -e "$tree/.version" ]; then
		work=$(mktemp -d) || return 1
		rm -rf "$tree"
		source_unpack_from "$work" "$tree" >&2 || status=$?
		rm -rf "$work"
		[ "$status" = 0 ] || { rm -rf "$tree"; return "$status"; }
	fi
	printf '%s\n' "$tree"
}

# Never root: what an installation would write outside its prefix must fail, not overwrite the machine's server.
source_as_builder() {
	if is_root; then runuser -u postgres -- "$@"; else "$@"; fi
}

# Configures, builds and installs into a prefix, with the test drivers and Perl modules that PGXS's installcheck uses.
# Left out is what the extension does not touch and what only makes the build longer.
source_compile() {	# source tree, prefix, CPPFLAGS
	local tree=$1 prefix=$2 cppflags=$3 build=$2.build

	rm -rf "$prefix" "$build"
	mkdir -p "$prefix" "$build" || return 1
	! is_root || chown postgres: "$prefix" "$build"
	source_as_builder test -x "$build" || { source_say "the user postgres cannot enter $IDEMPOTENCY_CACHE"; return 1; }
	(
		cd "$build" &&
		source_as_builder "$tree/configure" --quiet --prefix="$prefix" \
			--enable-cassert --enable-debug --enable-tap-tests \
			--without-icu --without-readline --without-zlib \
			CPPFLAGS="$cppflags" CFLAGS='-O1 -fno-omit-frame-pointer' &&
		source_as_builder make -s -j"$(nproc)" -C src install &&
		source_as_builder make -s -j"$(nproc)" -C contrib install
	) >"$build.log" 2>&1 || { tail -n 30 "$build.log" >&2; source_say "the build failed: $build.log"; return 1; }
	rm -rf "$build" "$build.log"
}

# pgTAP is SQL alone, so the packaged files serve another build of the server as they are.
source_install_pgtap() {	# prefix
	local from=/usr/share/postgresql/$SOURCE_MAJOR/extension

	[ -e "$from/pgtap.control" ] || { source_say "pgTAP is missing: install postgresql-$SOURCE_MAJOR-pgtap"; return 1; }
	cp "$from"/pgtap* "$("$1/bin/pg_config" --sharedir)/extension/"
}

# A server of one's own, built once: prints the prefix. A second caller waits for the first one's build.
source_server() {	# name, CPPFLAGS
	local prefix=$IDEMPOTENCY_CACHE/pg$SOURCE_MAJOR-$1 tree

	mkdir -p "$IDEMPOTENCY_CACHE" || return 1
	(
		flock 9 || exit 1
		tree=$(source_tree) || exit 1
		[ "$(cat "$prefix/.built-from" 2>/dev/null)" = "$(cat "$tree/.version")" ] && exit 0
		source_say "building PostgreSQL $(cat "$tree/.version") into $prefix: some minutes, once"
		source_compile "$tree" "$prefix" "$2" || exit 1
		source_install_pgtap "$prefix" || exit 1
		cp "$tree/.version" "$prefix/.built-from"
	) 9>"$IDEMPOTENCY_CACHE/.lock" || return 1
	printf '%s\n' "$prefix"
}

source_assert_server() { source_server assert ''; }
source_valgrind_server() { source_server valgrind -DUSE_VALGRIND; }
