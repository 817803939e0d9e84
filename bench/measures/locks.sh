# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# Locks on tables and indexes that a transaction holds, of which a backend has 16 places that cost little (more since 18).

measure_locks() {
	local scope="'acct_42 POST /v1/charges (eur)'" response="'{\"id\": 123456}'"
	fresh
	sql_or_die -c "SELECT pay_idempotency('stored')"
	say '## Locks of an open attempt' '' \
		'Fast-path locks on tables and indexes that are held to the end of the transaction. PostgreSQL up to 17 has 16' \
		'places for them in a backend; more go to the shared lock table. The rest of them is left to the work.' '' \
		'| | tables | indexes | together |' '|---|---:|---:|---:|'
	locks_row 'after `idempotent_begin`' "SELECT FROM idempotent_begin($scope, 'a')"
	locks_row 'after `idempotent_begin` and `idempotent_finish`' "SELECT FROM idempotent_begin($scope, 'a')" \
		"SELECT idempotent_finish($scope, 'a', $response)"
	locks_row 'after `idempotent_begin` that replays' "SELECT FROM idempotent_begin($scope, 'stored')"
	locks_row 'after a bare INSERT' "INSERT INTO bare VALUES (gen_random_uuid(), '', '', NULL, 1, NULL, NULL, NULL, NULL, now(), now(), now())"
	locks_row 'after INSERT ON CONFLICT by hand' "INSERT INTO by_hand VALUES ('', 'a', NULL, now(), now()) ON CONFLICT DO NOTHING"
}

# Relations below 16384 are the catalogs that the question itself reads.
locks_row() {	# label, statements…
	local options=() statement count
	for statement in "${@:2}"; do
		options+=(-c "$statement")
	done
	# The first call of a session reads more, to learn about the tables.
	count=$(sql -F ' | ' -c BEGIN "${options[@]}" -c ROLLBACK -c BEGIN "${options[@]}" -c \
		"SELECT count(DISTINCT l.relation) FILTER (WHERE relkind = 'r'), count(DISTINCT l.relation) FILTER (WHERE relkind = 'i'),
			count(DISTINCT l.relation)
		FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE pid = pg_backend_pid() AND fastpath AND l.relation >= 16384" -c ROLLBACK | grep '|') || die "no locks were counted"
	say "| $1 | $count |"
	[ "$1" != 'after `idempotent_begin`' ] || aim 'fast-path locks of an open attempt' "${count##*| }" '' '' '<=' 2
}
