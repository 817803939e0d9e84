# shellcheck shell=bash disable=SC2016,SC2153,SC2154
#
# How the cost of a key grows with the keys that are already there. A database for each size has so many finished keys,
# and so many rows in the bare table, whose growth is that of a B-tree over random values and of nothing else.

# Old rows are narrow here, since they are many: an INSERT goes to the heap's end and never reads them.
growth_row_bytes=200 growth_bare_bytes=150
growth_key="(1000000000000000000 + i * 80000000000)::text"

measure_growth() {
	local sizes=() size round
	say '## One thousand to fifty million keys' ''
	for size in "${growth_sizes[@]}"; do
		[ "$size" -le "$keys" ] || continue
		if growth_fits "$size"; then
			sizes+=("$size")
		else
			say "(Skipped: $size keys, for which there is not enough space on the disk.)" ''
		fi
	done
	growth_load "${sizes[@]}"
	for ((round = 1; round <= rounds; round++)); do
		growth_round "$round" "${sizes[@]}"
	done
	growth_table "${sizes[@]}"
	growth_after_checkpoint "${sizes[-1]}"
	chart growth 'Cost of a request by number of keys in the table' growth.gp "data='$FIGURES/growth.series'"
	# shellcheck disable=SC2046	# three words
	aim "first requests: cost with ${sizes[-1]} keys, of the cost with ${sizes[0]}" \
		$(stats ratio "$FIGURES/growth" "idempotency@${sizes[0]}" "idempotency@${sizes[-1]}") '<=' 1.3
	for size in "${sizes[@]}"; do
		sql_or_die -c "DROP DATABASE growth_$size"
	done
	boot_with
}

# What it takes, and some for WAL and the sort.
growth_fits() {	# keys
	local free need=$(($1 * (growth_row_bytes + growth_bare_bytes + 60)))
	free=$(df --output=avail -B1 "$WORK" | tail -n 1)
	[ $((free - need)) -gt 8000000000 ]
}

# Without WAL, which spares minutes for the large ones. Afterwards the indexes are read into memory, and a fiftieth
# more keys are written: since the checkpoint whole pages went to the WAL then, as in a server that has been running.
growth_load() {	# sizes…
	local size
	boot_with "-c wal_level=minimal -c max_wal_senders=0 -c maintenance_work_mem=1GB"
	for size; do
		note "loading $size keys" >&2
		sql_or_die -c "CREATE DATABASE growth_$size"
		PGDATABASE=growth_$size sql -f - <"$TOP/bench/setup.sql" >/dev/null || die "the set-up failed"
		PGDATABASE=growth_$size growth_fill 1 $((size - size / 50))
	done
	boot_with
	for size; do
		PGDATABASE=growth_$size sql_or_die -c 'CREATE EXTENSION pg_prewarm' \
			-c "SELECT pg_prewarm(c) FROM unnest('{idempotency_keys_pkey, bare_pkey}'::regclass[]) c" \
			-c "SELECT pg_prewarm('idempotency_keys', 'read')"
		PGDATABASE=growth_$size growth_add $((size - size / 50 + 1)) "$size"
	done
}

# Both tables at the same time, keys made as begin makes them.
growth_fill() {	# from, to
	local keys bare
	sql_or_die -c 'TRUNCATE charges'
	growth_fill_table idempotency_keys "$(growth_keys "$1" "$2")" &
	keys=$!
	growth_fill_table bare "$(growth_bare "$1" "$2")" &
	bare=$!
	{ wait "$keys" && wait "$bare"; } || die "the tables could not be filled"
}

# In one transaction, as WAL is spared only so. The index is built afterwards, as full as one that grew by random values is.
growth_fill_table() {	# table, INSERT
	sql_or_die --single-transaction -c "TRUNCATE $1" -c "ALTER TABLE $1 DROP CONSTRAINT $1_pkey" -c "$2" \
		-c "ALTER TABLE $1 ADD CONSTRAINT $1_pkey PRIMARY KEY (id) WITH (fillfactor = 70)"
	sql_or_die -c "VACUUM (ANALYZE) $1"
}

growth_add() {	# from, to
	sql_or_die -c "$(growth_keys "$1" "$2")" -c "$(growth_bare "$1" "$2")"
}

growth_keys() {	# from, to
	say "INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT key_id(scope, key), scope, key, 1,
			'{\"id\": 123456}', now(), now(), now() + interval '24 hours' * (1 + (i - $1)::float / ($2 - $1 + 1))
		FROM (SELECT i, 'acct_42 POST /v1/charges (eur)' AS scope, $growth_key AS key
			FROM generate_series($1::bigint, $2) i) k"
}

growth_bare() {	# from, to
	say "INSERT INTO bare (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
		SELECT md5(i::text)::uuid, '', '', 1, now(), now(), now() FROM generate_series($1, $2) i"
}

growth_round() {	# round, sizes…
	local size folder
	folder=$(scripts growth)
	echo 'SELECT pay_idempotency(gen_random_uuid()::text);' >"$folder/idempotency.sql"
	echo 'SELECT pay_bare(gen_random_uuid()::text);' >"$folder/bare.sql"
	for size in "${@:2}"; do
		say "\\set k 1000000000000000000 + random(1, $size) * 80000000000" \
			"SELECT * FROM idempotent_begin('acct_42 POST /v1/charges (eur)', :k);" >"$folder/replay.sql"
		# A small table would have grown many times over.
		[ "$size" -gt 100000 ] || PGDATABASE=growth_$size growth_fill 1 "$size"
		for name in replay bare idempotency; do
			PGDATABASE=growth_$size turn "$FIGURES/growth" "$1" "$name@$size" "$folder/$name.sql" "-c synchronous_commit=off" \
				-c "$clients" -T "$short"
		done
	done
}

growth_table() {	# sizes…
	local size name cells
	say "Transactions a second, $clients connections, \`synchronous_commit = off\`, and the cost of one as a multiple of that with" \
		"$1 keys in the table. The bare table's growth is the B-tree's own: the extension's is to be held against it." \
		'Replays are of any key in the table at random.' '' \
		'| keys | **idempotency** | cost | lowest to highest | one bare INSERT more | cost | lowest to highest | replays | cost | lowest to highest |' \
		'|---:|---:|---:|---|---:|---:|---|---:|---:|---|'
	for size; do
		cells="| $size |" series=$size
		for name in idempotency bare replay; do
			cells+=" $(stats median "$FIGURES/growth" "$name@$size" | awk '{ printf "%.0f", $1 }') |"
			cells+=" $(ratio_cells "$FIGURES/growth" "$name@$1" "$name@$size") |"
			series+=" $(stats ratio "$FIGURES/growth" "$name@$1" "$name@$size")"
		done
		say "$cells"
		echo "$series" >>"$FIGURES/growth.series"
	done
}

# The other side of the coin: right after a checkpoint each index page that is touched goes to the WAL as a whole.
growth_after_checkpoint() {	# size
	local name
	for name in bare idempotency; do
		sql_or_die -c CHECKPOINT
		PGDATABASE=growth_$1 turn "$FIGURES/growth.checkpoint" 1 "$name" "$WORK/scripts/growth/$name.sql" \
			"-c synchronous_commit=off" -c "$clients" -T "$short"
	done
	printf '\nRight after a checkpoint each page that is touched goes to the WAL as a whole, and there are many pages in a large\n'
	printf 'index: %.0f transactions a second with %s keys in the first %s s after a checkpoint, and %.0f of the bare INSERT.\n' \
		"$(stats median "$FIGURES/growth.checkpoint" idempotency)" "$1" "$short" "$(stats median "$FIGURES/growth.checkpoint" bare)"
}
