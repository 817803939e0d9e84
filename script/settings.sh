# shellcheck shell=bash
#
# What a server must be told so that it finds an extension that was installed with DESTDIR. Sourced by script/lib.sh and by
# test/checks/server.sh.
#
# Nothing is written into the machine's own installation: Debian's PostgreSQL up to 17 has extension_destdir for this, and
# 18 extension_control_path.

extension_settings() {	# pg_config, folder that was DESTDIR; lines for postgresql.conf
	local share lib
	share=$("$1" --sharedir) lib=$("$1" --pkglibdir)
	if grep -q extension_control_path "$share/postgresql.conf.sample"; then
		printf '%s\n' "extension_control_path = '$2$share:\$system'"
	else
		printf '%s\n' "extension_destdir = '$2'"
	fi
	printf '%s\n' "dynamic_library_path = '$2$lib:\$libdir'"
}

# Before 17 there are counters only where the library is loaded at the server's start. The server of the pgTAP tests does
# without, as they want to know what a session says before it has loaded the library.
preload_settings() {	# pg_config
	local version
	version=$("$1" --version)
	[[ ! $version =~ ([0-9]+) ]] || [ "${BASH_REMATCH[1]}" -ge 17 ] || printf '%s\n' "shared_preload_libraries = 'idempotency'"
}
