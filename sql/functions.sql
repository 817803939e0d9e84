-- The functions of the SQL edition: bodies in PL/pgSQL for what idempotency--1.0.sql declares. sql/generate puts the two
-- together into idempotency.sql; edit here, run "make sql", and commit both.
--
-- "-- @body NAME…" begins the body of these functions, "-- @object" one that the C edition has no need of, "-- @tables" what
-- follows the tables; "-- @macro NAME" begins a text that stands for @NAME(…)@ or @NAME@ in what follows, with its parameters
-- as $1, $2…  What stands between "-- [plain" or "-- [citus" and "-- ]" is in the script without or with Citus alone.
--
-- The protocol: the row first. Whoever wants a key inserts its row, unfinished, and so waits for whoever did so before, on
-- whichever node the row is. The invariants that idempotency.c numbers hold here too, with the key's row in place of the
-- key's lock (I3), and with 40001 where a snapshot hides what is stored (I4):
--
--	S1	Work on a key, and every write to a claim, is done by a transaction that has inserted the key's row, or locked the
--		one that was there, and that has done so first.
--	S2	An unfinished row that is committed is nobody's: it was forged, and counts as absent.
--	S3	What a claim says is read after the row was got, by a statement of its own.
--
-- An advisory lock of the transaction is a filter in front of that, on one node: it lets try_begin answer at once, and
-- lets lock_timeout hold where the row is on another node. Nothing depends on it.
--
-- On Citus the tables are distributed by id, and a statement is sent to the node that has the row. What it asks of the
-- session (which transaction, what time) is found out before.

-- [citus
-- @tables
ALTER TABLE @extschema@.idempotency_corrections DROP CONSTRAINT idempotency_corrections_pkey;
ALTER TABLE @extschema@.idempotency_corrections ADD CONSTRAINT idempotency_corrections_pkey PRIMARY KEY (correction, id);
SELECT create_reference_table('@extschema@.idempotency_settings');
SELECT create_distributed_table('@extschema@.idempotency_keys', 'id', colocate_with => 'none');
SELECT create_distributed_table('@extschema@.idempotency_claims', 'id', colocate_with => '@extschema@.idempotency_keys');
SELECT create_distributed_table('@extschema@.idempotency_corrections', 'id', colocate_with => '@extschema@.idempotency_keys');

-- The transaction's name: its number at the session's node, and that node.
-- @object
CREATE FUNCTION @extschema@.idempotent__xact(assign boolean) RETURNS xid8
	LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	number xid8;
BEGIN
	IF assign THEN
		number := pg_current_xact_id();
	ELSIF NOT pg_is_in_recovery() THEN
		number := pg_current_xact_id_if_assigned();
	END IF;
	RETURN ((SELECT g.groupid::bigint << 48 FROM pg_dist_local_group g) + number::text::bigint)::text::xid8;
END $$;

-- What a node has of its own: the open attempts of its sessions, on which the guard stands, since a distributed table can
-- have no trigger, and the view of its locks. Made at each node by its owner. To a node that comes later Citus takes the
-- functions, but not that PUBLIC may not execute them.
-- @object
CREATE FUNCTION @extschema@.idempotent__citus_node() RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET citus.enable_ddl_propagation = off
	SET client_min_messages = warning AS $$
DECLARE
	f regprocedure;
	g record;
BEGIN
	FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_class c ON c.relowner = p.proowner
			WHERE p.pronamespace = '@extschema@'::regnamespace AND p.proname ~ '^idempotent_' AND c.oid = '@extschema@.idempotency_keys'::regclass LOOP
		EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
	END LOOP;
	REVOKE ALL ON TYPE @extschema@.idempotent_attempt, @extschema@.idempotent_claim FROM PUBLIC;
	IF to_regclass('@extschema@.idempotency_open') IS NULL THEN
		CREATE UNLOGGED TABLE @extschema@.idempotency_open (id uuid PRIMARY KEY, key text NOT NULL);
		CREATE CONSTRAINT TRIGGER idempotency_guard AFTER INSERT OR UPDATE ON @extschema@.idempotency_open
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION @extschema@.idempotent__guard();
		@in_flight@
		-- Whatever the default privileges at this node say.
		FOR g IN SELECT c.oid::regclass AS object, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END AS grantee
				FROM pg_class c, aclexplode(c.relacl) x WHERE x.grantee <> c.relowner
					AND c.oid IN ('@extschema@.idempotency_open'::regclass, '@extschema@.idempotency_in_flight'::regclass) LOOP
			EXECUTE format('REVOKE ALL ON %s FROM %s', g.object, g.grantee);
		END LOOP;
		GRANT SELECT ON @extschema@.idempotency_in_flight TO pg_monitor;
	END IF;
	RETURN true;
END $$;
-- ]

-- The settings of what reads the tables, as the C edition plans its own statements: a plan that was made while a table was
-- empty stays until the table is analyzed again, and would read all of it for each key; compiling costs more than it gains.
-- @macro planned
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off

-- @macro hex
encode(CASE
	WHEN length($2) = 36 AND $2 ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$'
		THEN set_bit(decode(substr($2, 1, 8) || substr($2, 10, 4), 'hex') || substr(@digest($1, $2)@, 7, 10), 7, 1)
	WHEN length($2) = 26 AND $2 ~ '^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$'
		THEN set_bit(substr(int8send(@extschema@.idempotent__ulid_millis($2)), 3) || substr(@digest($1, $2)@, 7, 10), 7, 1)
	ELSE set_bit(substr(@digest($1, $2)@, 1, 16), 7, 0) END, 'hex')

-- An expression is made ready once a transaction, and so is every function in it, used or not: the rare forms are elsewhere,
-- and what is asked of every call is asked in as few expressions as can be.
-- @macro name
IF length(key) IN (26, 36) THEN
		i := @extschema@.idempotent__hex(scope, key)::uuid;
	ELSE
		i := encode(set_bit(substr(@digest(scope, key)@, 1, 16), 7, 0), 'hex')::uuid;
	END IF;

-- @macro digest
sha256(int8send(octet_length(@utf8($1)@)) || @utf8($1)@ || @utf8($2)@)

-- @macro utf8
convert_to($1, '@encoding@')

-- @macro lock
('x' || encode(substr(uuid_send($1), 9), 'hex'))::bit(64)::bigint

-- @macro is_read_only
current_setting('transaction_read_only') = 'on'

-- Not looked at in this session.
-- @macro has_new_shapes
current_setting('idempotency_sql.shapes', true) IS DISTINCT FROM '@extschema@'

-- @macro writable
	IF @is_read_only@ OR @has_new_shapes@ THEN
		PERFORM @extschema@.idempotent__may_write();
	END IF;

-- @macro shapes
	IF @has_new_shapes@ THEN
		PERFORM @extschema@.idempotent__shapes();
	END IF;

-- @macro scope
	IF scope IS NULL OR scope = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency scope must not be null or empty';
	ELSIF length(scope) > 1024 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency scope is too long',
			DETAIL = 'It must have at most 1024 characters.';
	END IF;

-- @macro names
	IF @are_no_names@ THEN
		@scope@
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key must not be null or empty';
	END IF;

-- @macro are_no_names
(scope = '' OR key = '' OR length(scope) > 1024) IS NOT FALSE

-- @macro attempt
	IF attempt < 1 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'attempt must be at least 1';
	END IF;

-- @macro required
	IF $1 IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = '$1 must not be null';
	END IF;

-- @macro strict
current_setting('transaction_isolation') <> 'read committed'

-- @macro setting
CASE WHEN current_setting('idempotency.$1', true) <> '' THEN @extschema@.idempotent__setting_$2('$1', current_setting('idempotency.$1'))
	ELSE (SELECT s.$1 FROM @extschema@.idempotency_settings s WHERE s.only_row) END

-- $1: the finish, $2: when the request was sent, $3: retention, a length of time without months and days
-- @macro expires_by_rule
date_bin(@extschema@.idempotent__step($3), @kept_until($1, $2, $3)@, '2000-01-01 00:00:00+00') + @extschema@.idempotent__step($3)

-- [plain
-- @macro expires
@expires_by_rule($1, $2, $3)@

-- @macro after
$1 + $2

-- The same of an unfinished row, as if it were finished at $1; its retention is most often a day. Where that holds at its
-- finish too, finish leaves expires_at alone, and has no index to write to.
-- @macro expires_soon
CASE WHEN $2 = interval '24:00:00'
	THEN date_bin(interval '00:04:28.435456', $1 + interval '24:00:00' - interval '1 microsecond', '2000-01-01 00:00:00+00') + interval '00:04:28.435456'
	ELSE @extschema@.idempotent__expires($1, NULL, $2) END
-- ]

-- What asks for a column must be immutable on Citus, which adding to a timestamptz is not.
-- [citus
-- @macro expires
@extschema@.idempotent__expires($1, $2, $3)

-- @macro after
($1 AT TIME ZONE 'UTC' + $2) AT TIME ZONE 'UTC'

-- @macro expires_soon
@extschema@.idempotent__expires($1, NULL, $2)
-- ]

-- @macro kept_until
greatest($1, CASE WHEN $2 < $1 + $3 THEN $2 WHEN $2 >= $1 + $3 THEN $1 + $3 END) + $3 - interval '1 microsecond'

-- @macro retention_max
interval '876000000 hours'

-- @object
CREATE FUNCTION @extschema@.idempotent__ulid_millis(key text) RETURNS bigint
	LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT sum((strpos('0123456789abcdefghjkmnpqrstvwxyz', lower(substr($1, n, 1))) - 1)::bigint << (5 * (10 - n)))::bigint
	FROM generate_series(1, 10) n
$$;

-- The id of any key, in hexadecimal digits.
-- @object
CREATE FUNCTION @extschema@.idempotent__hex(of_scope text, of_key text) RETURNS text
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN @hex(of_scope, of_key)@;
END $$;

-- The largest power of two of microseconds that is not above retention / 256.
-- @object
CREATE FUNCTION @extschema@.idempotent__step(retention interval) RETURNS interval
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN ((1::bigint << greatest(length(ltrim(trunc(extract(epoch FROM retention) * 1000000 / 256)::bigint::bit(64)::text, '0')) - 1, 0))::text
		|| ' microseconds')::interval;
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__expires(finished timestamptz, sent timestamptz, retention interval) RETURNS timestamptz
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN @expires_by_rule(finished, sent, retention)@;
END $$;

-- Do the tables have a shape on which the promise can rest? Looked at once a session.
-- @object
CREATE FUNCTION @extschema@.idempotent__shapes() RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t record;
	-- [plain
	distributed boolean;
	-- ]
BEGIN
	FOR t IN
		SELECT c.relname, CASE
				WHEN c.relkind = 'p' THEN 'It is partitioned.'
				WHEN c.relkind <> 'r' THEN 'It is not an ordinary table.'
				WHEN c.relpersistence <> 'p' THEN 'It is unlogged or temporary: a crash would lose it.'
				WHEN c.relispartition THEN 'It is a partition.'
				WHEN EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid) THEN 'Other tables inherit from it.'
				WHEN NOT EXISTS (SELECT FROM pg_index x JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[0]
						WHERE x.indrelid = c.oid AND x.indisprimary AND x.indisvalid AND x.indimmediate AND x.indnkeyatts = 1
							AND a.attname = 'id')
					THEN 'It has no valid immediate primary key on exactly (id).'
			END AS why
		FROM pg_class c
		WHERE c.oid IN ('@extschema@.idempotency_keys'::regclass, '@extschema@.idempotency_claims'::regclass)
	LOOP
		IF t.why IS NOT NULL THEN
			RAISE EXCEPTION USING ERRCODE = '0A000',
				MESSAGE = format('table "%s" is not of a shape that keeps the promise of the SQL edition of "idempotency"', t.relname),
				DETAIL = t.why, HINT = 'Leave the table as the script made it; see doc/operation.md.';
		END IF;
	END LOOP;
	-- [plain
	IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
		EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition p WHERE p.logicalrelid IN (''@extschema@.idempotency_keys''::regclass,
			''@extschema@.idempotency_claims''::regclass))' INTO distributed;
		IF distributed THEN
			RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = 'the tables of this SQL edition of "idempotency" cannot be distributed',
				HINT = 'On Citus load sql/idempotency.citus.sql; see doc/citus.md.';
		END IF;
	END IF;
	-- ]
	-- [citus
	IF (SELECT count(*) FROM pg_dist_partition p WHERE p.partmethod = 'h' AND p.partkey LIKE '{VAR :varno 1 :varattno 1 %'
			AND p.logicalrelid IN ('@extschema@.idempotency_keys'::regclass, '@extschema@.idempotency_claims'::regclass)) <> 2 THEN
		RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = 'the tables of the SQL edition of "idempotency" for Citus are not distributed by id',
			HINT = 'Leave the tables as the script made them; see doc/citus.md.';
	ELSIF to_regclass('@extschema@.idempotency_open') IS NULL AND NOT pg_is_in_recovery() THEN
		RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = 'this node has no table of open idempotency attempts',
			HINT = 'Call @extschema@.idempotent__citus_node() at it, as the owner.';
	END IF;
	-- ]
	PERFORM set_config('idempotency_sql.shapes', '@extschema@', false);
	RETURN true;
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__may_write() RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF @is_read_only@ THEN
		RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'cannot execute this function in a read-only transaction';
	END IF;
	RETURN @extschema@.idempotent__shapes();
END $$;

-- When a key says that it was made; null if it says nothing, or nothing that can be true.
-- @object
CREATE FUNCTION @extschema@.idempotent__key_time(key text) RETURNS timestamptz
	LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	millis bigint;
	on_ boolean;
BEGIN
	on_ := @setting(key_time, boolean)@;
	IF NOT on_ THEN
		RETURN NULL;
	ELSIF length(key) = 36 AND key ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$' THEN
		millis := ('x0000' || substr(key, 1, 8) || substr(key, 10, 4))::bit(64)::bigint;
	ELSIF length(key) = 26 AND key ~ '^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$' THEN
		millis := @extschema@.idempotent__ulid_millis(key);
	END IF;
	IF millis >= 1451606400000 THEN
		RETURN timestamptz '1970-01-01 00:00:00+00' + (millis::text || ' milliseconds')::interval;
	END IF;
	RETURN NULL;
END $$;

-- A length of time as hours alone: months of 30 days, days of 24 hours.
-- @object
CREATE FUNCTION @extschema@.idempotent__span(span interval, what text, least_ bigint, most interval) RETURNS interval
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	usecs numeric;
BEGIN
	IF isfinite(span) THEN
		usecs := (extract(year FROM span) * 12 + extract(month FROM span)) * 30 * 86400000000
			+ extract(day FROM span) * 86400000000
			+ (extract(hour FROM span) * 3600 + extract(minute FROM span) * 60) * 1000000 + extract(microseconds FROM span);
	END IF;
	IF usecs IS NULL OR usecs < least_ OR usecs > extract(epoch FROM most) * 1000000 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = what || ' is out of range';
	END IF;
	RETURN (trunc(usecs)::text || ' microseconds')::interval;
END $$;

-- A setting that is a length of time; a number alone counts seconds.
-- @object
CREATE FUNCTION @extschema@.idempotent__setting_span(name text, value text) RETURNS interval
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF value !~ '^ *[0-9]+([.][0-9]+)? *(us|ms|s|min|h|d)? *$' THEN
		RAISE invalid_parameter_value;
	END IF;
	RETURN @extschema@.idempotent__span(value::interval, name, 0, @retention_max@);
EXCEPTION WHEN OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = format('setting "idempotency.%s" has an invalid value', name),
		HINT = 'Correct it where it was set.';
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__setting_number(name text, value text) RETURNS integer
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN CASE
		WHEN value ~ '^[0-9]+ *$' THEN value::integer
		WHEN value ~* '^[0-9]+ *B$' THEN rtrim(value, 'bB ')::integer
		ELSE pg_size_bytes(value)::integer END;
EXCEPTION WHEN OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = format('setting "idempotency.%s" has an invalid value', name),
		HINT = 'Correct it where it was set.';
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__setting_boolean(name text, value text) RETURNS boolean
	LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN value::boolean;
EXCEPTION WHEN invalid_text_representation THEN
	RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = format('setting "idempotency.%s" has an invalid value', name),
		HINT = 'Correct it where it was set.';
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__retention() RETURNS interval
	LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN @setting(retention, span)@;
END $$;

-- The canonical form of a request: see src/fingerprint.c.
-- @object
CREATE FUNCTION @extschema@.idempotent__canonical(value jsonb) RETURNS bytea
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	wire bytea;
BEGIN
	CASE jsonb_typeof(value)
	WHEN 'null' THEN
		RETURN 'n';
	WHEN 'boolean' THEN
		RETURN CASE WHEN value = 'true' THEN 't' ELSE 'f' END::bytea;
	WHEN 'string' THEN
		wire := @utf8(value #>> '{}')@;
		RETURN '"'::bytea || int4send(octet_length(wire)) || wire;
	WHEN 'number' THEN
		wire := numeric_send((value #>> '{}')::numeric);
		RETURN CASE WHEN get_byte(wire, 0) = 0 AND get_byte(wire, 1) = 0 THEN '#'::bytea || '\x000000000000'
			ELSE '#'::bytea || substr(wire, 1, 6) || substr(wire, 9) END;
	WHEN 'array' THEN
		RETURN (SELECT '['::bytea || int4send(count(*)::integer)
				|| coalesce(string_agg(@extschema@.idempotent__canonical(e.value), '' ORDER BY e.n), '')
			FROM jsonb_array_elements(value) WITH ORDINALITY e (value, n));
	ELSE
		RETURN (SELECT '{'::bytea || int4send(count(*)::integer)
				|| coalesce(string_agg('"'::bytea || int4send(octet_length(e.key)) || e.key
					|| @extschema@.idempotent__canonical(e.value), '' ORDER BY octet_length(e.key), e.key), '')
			FROM (SELECT @utf8(o.key)@ AS key, o.value FROM jsonb_each(value) o) e);
	END CASE;
END $$;

-- Get the key's row, and return the expired one that was there, if one was: nobody else is at the key until this
-- transaction ends. An inserted and deleted row keeps others waiting as one that stays does. Raises IK500 where this
-- transaction has an attempt on the key.
-- @object
CREATE FUNCTION @extschema@.idempotent__get(i uuid, h bigint, scope text, key text)
	RETURNS @extschema@.idempotency_keys
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
#variable_conflict use_variable
DECLARE
	r @extschema@.idempotency_keys;
BEGIN
	PERFORM pg_advisory_xact_lock(h);
	FOR n IN 1..10 LOOP
		INSERT INTO @extschema@.idempotency_keys AS k
			(id, scope, key, attempt, first_seen_at, finished_at, expires_at)
			VALUES (i, scope, key, 0, '-infinity', '-infinity', '-infinity') ON CONFLICT (id) DO NOTHING;
		IF FOUND THEN
			DELETE FROM @extschema@.idempotency_keys k WHERE k.id = i;
			RETURN NULL;
		END IF;
		SELECT k.* INTO r FROM @extschema@.idempotency_keys k WHERE k.id = i FOR UPDATE;
		IF FOUND THEN
			IF r.finished_at IS NOT NULL THEN
				RETURN r;
			ELSIF r.xid = pg_current_xact_id() THEN
				RETURN r;
			END IF;
			DELETE FROM @extschema@.idempotency_keys k WHERE k.id = i AND k.finished_at IS NULL;	-- S2
		END IF;
	END LOOP;
	PERFORM @extschema@.idempotent__give_up();
END $$;

-- The loop's end: somebody keeps the row from being there.
-- @object
CREATE FUNCTION @extschema@.idempotent__give_up() RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF EXISTS (SELECT FROM unnest(ARRAY['@extschema@.idempotency_keys'::regclass, '@extschema@.idempotency_claims'::regclass,
				'@extschema@.idempotency_corrections'::regclass]) r (id)
			WHERE EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.id AND NOT t.tgisinternal AND t.tgtype & 2 = 2)
				OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = r.id)) THEN
		RAISE EXCEPTION USING ERRCODE = '09000', MESSAGE = 'a trigger or rule has suppressed a row of an idempotency table';
	END IF;
	RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'could not get the idempotency key''s row',
		HINT = 'Retry the transaction with the same key.';
END $$;

-- In the stricter isolation levels a claim that the snapshot hides must be a 40001.
-- @object
CREATE FUNCTION @extschema@.idempotent__probe_claim(i uuid) RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
BEGIN
	INSERT INTO @extschema@.idempotency_claims
		(id, attempt, max_attempts, retention, lease, first_seen_at, claimed_at, lease_until, reset_at)
		VALUES (i, 0, 0, '0', '0', '-infinity', '-infinity', '-infinity', '-infinity') ON CONFLICT (id) DO NOTHING;
	IF FOUND THEN
		DELETE FROM @extschema@.idempotency_claims c WHERE c.id = i AND c.attempt = 0;
	END IF;
	RETURN true;
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__report(outcome text, c @extschema@.idempotency_claims, retry_after integer) RETURNS boolean
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
	CASE outcome
	WHEN 'mismatch' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK422', MESSAGE = 'idempotency key was already used with a different request',
			HINT = 'Send a new key with a new request, and a retry with the same content as the first.';
	WHEN 'in_progress' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK409', MESSAGE = 'idempotency key is in use by another attempt',
			DETAIL = CASE WHEN c.retry_at IS NULL
				THEN format('Attempt %s has held it since %s, until %s.', c.attempt, c.claimed_at, c.lease_until)
				ELSE format('Attempt %s was released at %s, and the next one is due at %s.', c.attempt, c.lease_until, c.retry_at) END,
			HINT = format('Retry in %s s.', retry_after);
	WHEN 'parked' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK423', MESSAGE = 'idempotency key is parked',
			DETAIL = format('The outcome of attempt %s is not known.', c.attempt),
			HINT = 'Settle it with idempotent_resolve, or hand it out once more with idempotent_retry.';
	WHEN 'expired' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK412', MESSAGE = 'request is older than the retention of its idempotency key',
			DETAIL = 'Whether it was carried out can no longer be known.',
			HINT = 'Find out by other means what became of the request before sending it under a new key.';
	WHEN 'open' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency attempt was already begun in this transaction',
			HINT = 'Finish or release it before the same key is begun again. Call the function in FROM: SELECT (f(...)).* calls it once for each column.';
	END CASE;
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__overtaken(attempt integer, reason text) RETURNS boolean
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'IK410', MESSAGE = format('attempt %s no longer holds the idempotency key', attempt),
		DETAIL = reason,
		HINT = 'Roll back what this attempt has done and begin again: begin returns where the key stands.';
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__guard() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
DECLARE
	context text;
BEGIN
	-- [plain
	IF NEW.finished_at IS NOT NULL OR NOT EXISTS (SELECT FROM @extschema@.idempotency_keys k
			WHERE k.id = NEW.id AND k.finished_at IS NULL) THEN
		RETURN NULL;
	ELSIF TG_OP = 'INSERT' THEN
		-- Once more, behind the application's own deferred triggers, which may still finish.
		UPDATE @extschema@.idempotency_keys k SET xid = k.xid
			WHERE k.id = NEW.id AND k.finished_at IS NULL;
	-- ]
	-- [citus
	IF NOT EXISTS (SELECT FROM @extschema@.idempotency_open o WHERE o.id = NEW.id) THEN
		RETURN NULL;
	ELSIF TG_OP = 'INSERT' THEN
		-- Once more, behind the application's own deferred triggers, which may still finish.
		UPDATE @extschema@.idempotency_open o SET key = o.key WHERE o.id = NEW.id;
	-- ]
	ELSE
		GET DIAGNOSTICS context = PG_CONTEXT;
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'cannot commit an idempotency attempt that is not finished',
			DETAIL = format('The key is "%s".', NEW.key),
			HINT = CASE WHEN context ~ 'idempotent_(try_)?begin'
				THEN 'SET CONSTRAINTS ALL IMMEDIATE is in force: begin before it, or defer the constraints again.'
				ELSE 'Call idempotent_finish or idempotent_release before COMMIT.' END;
	END IF;
	RETURN NULL;
END $$;

-- [plain
-- Without WHEN, which PostgreSQL would read and plan in every statement: finish leaves xid alone, and so is none of its events.
-- @object
CREATE CONSTRAINT TRIGGER idempotency_guard AFTER INSERT OR UPDATE OF xid ON @extschema@.idempotency_keys
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	EXECUTE FUNCTION @extschema@.idempotent__guard();
-- ]

-- @body idempotent_begin idempotent_try_begin
#variable_conflict use_variable
DECLARE
	i uuid; h bigint;
	me xid8;
	a @extschema@.idempotent_attempt;
	r record;
	c @extschema@.idempotency_claims;
	old @extschema@.idempotency_keys;
	fp bytea;
	ret interval;
	sent timestamptz;
	now_ timestamptz;
	no integer; last_no integer;
	timed boolean; longest integer;
	got boolean; filtered boolean; busy boolean;
BEGIN
	IF @is_read_only@ OR @has_new_shapes@ OR @are_no_names@ OR retention IS NOT NULL OR lease IS NOT NULL
			OR request IS NOT NULL AND fingerprint IS NOT NULL OR octet_length(fingerprint) NOT BETWEEN 1 AND 64 THEN
		@writable@
		@names@
		IF request IS NOT NULL AND fingerprint IS NOT NULL THEN
			RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'request and fingerprint cannot both be given';
		ELSIF octet_length(fingerprint) NOT BETWEEN 1 AND 64 THEN
			RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'fingerprint must have 1 to 64 bytes';
		END IF;
		IF retention IS NOT NULL THEN
			ret := @extschema@.idempotent__span(retention, 'retention', 1, @retention_max@);
		END IF;
		IF lease IS NOT NULL THEN
			lease := @extschema@.idempotent__span(lease, 'lease', 1, '720 hours');
		END IF;
	END IF;
	IF request IS NOT NULL THEN
		fp := '\x01'::bytea || sha256(@extschema@.idempotent__canonical(request));
	ELSIF fingerprint IS NOT NULL THEN
		fp := '\x00'::bytea || fingerprint;
	END IF;
	@name@

	-- Look first: a finished key is replayed without a lock.
	SELECT CASE WHEN o.finished_at IS NOT NULL AND o.expires_at > clock_timestamp() AND o.scope = scope AND o.key = key
				AND (o.fingerprint <> fp AND get_byte(o.fingerprint, 0) <= 1) IS NOT TRUE THEN 'replayed' END,
			true, o.attempt, o.status, o.headers, o.response, o.body, NULL::text, NULL::jsonb,
			o.first_seen_at, o.finished_at, o.expires_at, NULL::integer, NULL::text
		INTO a FROM @extschema@.idempotency_keys o WHERE o.id = i;
	IF FOUND THEN
		IF a.outcome IS NOT NULL THEN
			RETURN a;
		END IF;

	-- The most common course: nothing is stored of the key, nobody is at it, and what was said of it is the default.
	ELSIF lease IS NULL AND ret IS NULL AND first_sent IS NULL AND NOT @strict@
			AND coalesce(current_setting('idempotency.retention', true), '') || coalesce(current_setting('idempotency.key_time', true), '')
				|| coalesce(current_setting('idempotency.max_key_length', true), '') = ''
			AND pg_try_advisory_xact_lock(@lock(i)@) THEN
		now_ := clock_timestamp();
		-- [plain
		INSERT INTO @extschema@.idempotency_keys AS o
			(id, scope, key, fingerprint, attempt, first_seen_at, expires_at, retention, xid)
			SELECT i, scope, key, fp, 1, now_, @expires_soon(now_, s.retention)@, s.retention, pg_current_xact_id()
			FROM @extschema@.idempotency_settings s
			WHERE s.only_row AND NOT s.key_time AND length(key) <= s.max_key_length
				AND NOT EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL)
			ON CONFLICT (id) DO NOTHING RETURNING o.retention INTO ret;
		IF FOUND THEN
			-- S3
			PERFORM FROM @extschema@.idempotency_claims l WHERE l.id = i;
			IF NOT FOUND THEN
				a.outcome := 'started'; a.replayed := false; a.attempt := 1; a.first_seen_at := now_; a.expires_at := now_ + ret;
				RETURN a;
			END IF;
			got := true; timed := false; longest := length(key);
		END IF;
		-- ]
		-- [citus
		SELECT s.retention INTO ret FROM @extschema@.idempotency_settings s
			WHERE s.only_row AND NOT s.key_time AND length(key) <= s.max_key_length;
		IF FOUND THEN
			this_xact := @extschema@.idempotent__xact(true);
			INSERT INTO @extschema@.idempotency_keys AS o
				(id, scope, key, fingerprint, attempt, first_seen_at, expires_at, retention, xid)
				VALUES (i, scope, key, fp, 1, now_, @expires_soon(now_, ret)@, ret, pg_current_xact_id()) ON CONFLICT (id) DO NOTHING;
			IF FOUND THEN
				INSERT INTO @extschema@.idempotency_open (id, key) VALUES (i, key);
				-- S3
				SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i;
				IF NOT FOUND THEN
					a.outcome := 'started'; a.replayed := false; a.attempt := 1; a.first_seen_at := now_; a.expires_at := now_ + ret;
					RETURN a;
				ELSIF c.reset_at IS NULL AND c.xid = this_xact THEN
					PERFORM @extschema@.idempotent__report('open', NULL, NULL);
				END IF;
				got := true; timed := false; longest := length(key);
			END IF;
		END IF;
		-- ]
	END IF;

	-- [citus
	this_xact := @extschema@.idempotent__xact(true);
	-- ]
	a := NULL;
	me := pg_current_xact_id_if_assigned();
	h := @lock(i)@;
	sent := first_sent;
	a.replayed := false;
	FOR round IN 1..11 LOOP
		EXIT WHEN got;
		IF round = 11 THEN
			PERFORM @extschema@.idempotent__give_up();
		END IF;

		-- Another request, and a parked key, are refused without a lock too.
		SELECT k.*, (SELECT true FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL) AS claimed,
				s.retention AS default_retention, s.key_time, s.max_key_length INTO r
			FROM @extschema@.idempotency_settings s LEFT JOIN @extschema@.idempotency_keys k ON k.id = i WHERE s.only_row;
		now_ := clock_timestamp();
		no := 0; timed := r.key_time; longest := r.max_key_length;
		IF ret IS NULL THEN
			IF current_setting('idempotency.retention', true) <> '' THEN
				ret := @extschema@.idempotent__retention();
			ELSE
				ret := r.default_retention;
			END IF;
		END IF;
		IF r.id IS NOT NULL THEN
			IF r.finished_at IS NULL THEN
				IF r.xid = me THEN
					PERFORM @extschema@.idempotent__report('open', NULL, NULL);
				END IF;
			ELSIF r.scope <> scope OR r.key <> key THEN
				a.outcome := 'mismatch';
			ELSIF r.expires_at > now_ THEN
				IF r.fingerprint <> fp AND get_byte(r.fingerprint, 0) <= 1 THEN
					a.outcome := 'mismatch';
				ELSE
					a.outcome := 'replayed'; a.replayed := true; a.attempt := r.attempt; a.status := r.status;
					a.headers := r.headers; a.response := r.response; a.body := r.body;
					a.first_seen_at := r.first_seen_at; a.finished_at := r.finished_at; a.expires_at := r.expires_at;
					RETURN a;
				END IF;
			ELSE
				no := r.attempt;
			END IF;
		END IF;
		IF a.outcome IS NULL AND r.claimed THEN
			SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL;
			IF FOUND THEN
				IF c.xid = me THEN
					PERFORM @extschema@.idempotent__report('open', NULL, NULL);
				ELSIF c.scope <> scope OR c.key <> key OR c.fingerprint <> fp AND get_byte(c.fingerprint, 0) <= 1 THEN
					a.outcome := 'mismatch';
				ELSIF filtered AND busy IS NOT TRUE OR NOT @strict@ AND @parked(c, now_)@ THEN
					@judge@
					-- Nothing is written where a claim is not due, but what the snapshot hides of it is a 40001.
					IF a.outcome IS NOT NULL AND @strict@ THEN
						PERFORM FROM @extschema@.idempotency_claims l WHERE l.id = i FOR UPDATE;
					END IF;
				END IF;
			END IF;
		END IF;
		IF a.outcome IS NOT NULL THEN
			EXIT;
		END IF;

		-- The filter. Where there is a claim, its worker may have been at it until now.
		IF busy THEN
			a.outcome := 'in_progress'; a.retry_after := 1;
			IF r.claimed AND c.id IS NOT NULL THEN
				a.attempt := c.attempt; a.first_seen_at := c.first_seen_at;
			END IF;
			RETURN a;
		END IF;
		IF filtered IS NOT TRUE THEN
			filtered := true;
			IF pg_try_advisory_xact_lock(h) THEN
				CONTINUE WHEN r.claimed;
			ELSE
				IF @wait@ THEN
					PERFORM pg_advisory_xact_lock(h);
				ELSE
					busy := true;
				END IF;
				CONTINUE;
			END IF;
		END IF;

		-- The row.
		IF lease IS NOT NULL THEN
			old := @extschema@.idempotent__get(i, h, scope, key);
			now_ := clock_timestamp();
			CONTINUE WHEN old.expires_at > now_;
		ELSE
			IF r.id IS NOT NULL THEN
				-- Expired, or nobody's.
				IF r.finished_at IS NOT NULL AND NOT coalesce(r.claimed, false) THEN
					IF sent IS NULL THEN
						sent := @extschema@.idempotent__key_time(key);
						sent := CASE WHEN sent <= now_ + ret THEN sent END;
					END IF;
					IF sent < r.expires_at AND r.shortened IS NOT TRUE THEN
						a.outcome := 'expired';
						EXIT;
					END IF;
				END IF;
				DELETE FROM @extschema@.idempotency_keys k WHERE k.id = i
					AND (k.expires_at <= now_ OR k.finished_at IS NULL AND (k.xid = me) IS NOT TRUE);
			END IF;
			INSERT INTO @extschema@.idempotency_keys AS k
				(id, scope, key, fingerprint, attempt, first_seen_at, expires_at, retention, xid)
				VALUES (i, scope, key, fp, 1, now_, @expires_soon(now_, ret)@, ret, pg_current_xact_id()) ON CONFLICT (id) DO NOTHING;
			CONTINUE WHEN NOT FOUND;
			-- [citus
			INSERT INTO @extschema@.idempotency_open (id, key) VALUES (i, key);
			-- ]
		END IF;
		got := true;
	END LOOP;

	IF got THEN
		-- The claim, as it is now that nobody else is at the key.
		SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i;
		IF NOT FOUND AND @strict@ THEN
			PERFORM @extschema@.idempotent__probe_claim(i);
		END IF;
	END IF;
	IF a.outcome IS NULL AND c.id IS NOT NULL AND c.reset_at IS NULL THEN
		@judge@
		IF a.outcome IS NULL THEN
			-- Recovered: where an attempt under lease was left.
			a.outcome := 'recovered'; a.attempt := c.attempt + 1; a.checkpoint := c.checkpoint; a.state := c.state;
			a.first_seen_at := c.first_seen_at; a.error := c.last_error; a.expires_at := now_ + c.retention;
			IF lease IS NULL THEN
				UPDATE @extschema@.idempotency_claims l SET attempt = c.attempt + 1
					WHERE l.id = i AND l.attempt = c.attempt;
				IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
				sent := coalesce(sent, @extschema@.idempotent__key_time(key));
				UPDATE @extschema@.idempotency_keys k SET attempt = c.attempt + 1, claim_no = c.attempt,
						fingerprint = coalesce(c.fingerprint, fp), first_seen_at = c.first_seen_at, retention = c.retention,
						expires_at = @expires_soon(now_, c.retention)@, sent_at = sent
					WHERE k.id = i;
			ELSE
				UPDATE @extschema@.idempotency_claims l SET attempt = c.attempt + 1,
						fingerprint = coalesce(c.fingerprint, fp), request = coalesce(c.request, request), lease = lease,
						claimed_at = now_, lease_until = now_ + lease, retry_at = NULL, parked_at = NULL,
						xid = pg_current_xact_id()
					WHERE l.id = i AND l.attempt = c.attempt;
				IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
			END IF;
			RETURN a;
		END IF;
	END IF;

	-- What may only be judged once nothing is stored of the key.
	IF a.outcome IS NULL OR a.outcome = 'expired' THEN
		IF length(key) > (CASE WHEN current_setting('idempotency.max_key_length', true) <> ''
				THEN @extschema@.idempotent__setting_number('max_key_length', current_setting('idempotency.max_key_length'))
				ELSE longest END) THEN
			RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key is too long',
				DETAIL = 'See "idempotency.max_key_length".';
		END IF;
		IF first_sent IS NOT NULL THEN
			IF NOT isfinite(first_sent) THEN
				RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'first_sent must be finite',
					HINT = 'Leave it out where the time is not known.';
			ELSIF first_sent > now_ + interval '1 minute' THEN
				RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'first_sent is in the future',
					DETAIL = 'It is more than a minute ahead of the server''s clock.';
			END IF;
		ELSIF timed OR current_setting('idempotency.key_time', true) <> '' THEN
			sent := @extschema@.idempotent__key_time(key);
			sent := CASE WHEN sent <= now_ + ret THEN sent END;
		END IF;
		-- By the clock, since the row may have been waited for: what kept the request's answer may have been pruned meanwhile.
		IF sent IS NOT NULL AND (sent + ret <= clock_timestamp()
				OR old.id IS NOT NULL AND old.shortened IS NOT TRUE AND sent < old.expires_at) THEN
			a.outcome := 'expired';
		END IF;
	END IF;

	IF a.outcome IS NOT NULL THEN
		IF @wait@ THEN
			PERFORM @extschema@.idempotent__report(a.outcome, c, a.retry_after);
		END IF;
		IF lease IS NULL THEN
			DELETE FROM @extschema@.idempotency_keys k WHERE k.id = i AND k.finished_at IS NULL AND k.xid = pg_current_xact_id_if_assigned();
			-- [citus
			DELETE FROM @extschema@.idempotency_open o WHERE o.id = i;
			-- ]
		END IF;
		RETURN a;
	END IF;

	a.outcome := 'started'; a.first_seen_at := now_; a.expires_at := now_ + ret;
	IF lease IS NOT NULL THEN
		no := greatest(no, old.attempt, c.attempt, 0) + 1;
		a.attempt := no;
		-- Over a counter too: its number goes on.
		DELETE FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.attempt = c.attempt AND l.reset_at IS NOT NULL;
		last_no := @last_no(no)@;
		INSERT INTO @extschema@.idempotency_claims
			(id, scope, key, fingerprint, request, attempt, max_attempts, retention, lease, first_seen_at, claimed_at, lease_until, xid)
			VALUES (i, scope, key, fp, request, no, last_no, ret, lease, now_, now_, now_ + lease, pg_current_xact_id())
			ON CONFLICT (id) DO NOTHING;
		IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	ELSIF c.id IS NOT NULL OR sent IS NOT NULL THEN
		a.attempt := coalesce(c.attempt, 0) + 1;
		UPDATE @extschema@.idempotency_keys k SET attempt = a.attempt, claim_no = c.attempt, sent_at = sent WHERE k.id = i;
	ELSE
		a.attempt := 1;
	END IF;
	RETURN a;
END

-- The outcome where a claim tells it; null where it is due.
-- @macro judge
				IF c.scope <> scope OR c.key <> key THEN
					a.outcome := 'mismatch';
				ELSIF c.fingerprint <> fp AND get_byte(c.fingerprint, 0) <= 1 THEN
					a.outcome := 'mismatch';
				ELSIF @parked(c, now_)@ THEN
					a.outcome := 'parked'; a.attempt := c.attempt; a.checkpoint := c.checkpoint; a.state := c.state;
					a.first_seen_at := c.first_seen_at; a.error := c.last_error;
				ELSIF c.lease_until > now_ OR c.retry_at > now_ THEN
					a.outcome := 'in_progress'; a.attempt := c.attempt; a.first_seen_at := c.first_seen_at;
					a.retry_after := least(greatest(ceil(extract(epoch FROM greatest(c.lease_until, c.retry_at) - now_)), 1), 2147483647);
				END IF;

-- @macro last_no
coalesce((SELECT CASE WHEN m.n = 0 OR m.n::bigint + $1 - 1 > 2147483647 THEN 0 ELSE $1 - 1 + m.n END
	FROM (SELECT @setting(max_attempts, number)@ AS n) m), 0)

-- @macro body
	IF body_text IS NOT NULL THEN
		IF body IS NOT NULL THEN
			RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'body and body_text cannot both be given';
		END IF;
		body := @utf8(body_text)@;
	END IF;

-- @macro size
	most := @setting(max_response_size, number)@;
	IF most > 0 AND coalesce(octet_length(jsonb_send(response)), 0) + coalesce(octet_length(jsonb_send(headers)), 0)
			+ coalesce(octet_length(body), 0) > most THEN
		RAISE EXCEPTION USING ERRCODE = 'IK413', MESSAGE = 'response is too large to be stored',
			DETAIL = format('idempotency.max_response_size is %s bytes.', most),
			HINT = 'Store the response elsewhere and keep a reference to it with the key.';
	END IF;

-- @body idempotent_finish
#variable_conflict use_variable
DECLARE
	i uuid; h bigint;
	ret interval;
	most integer;
	now_ timestamptz := clock_timestamp();
	ends timestamptz;
	number integer; claimed integer;
	k @extschema@.idempotency_keys;
	c @extschema@.idempotency_claims;
BEGIN
	@name@
	IF @is_read_only@ OR @has_new_shapes@ OR @are_no_names@ OR body_text IS NOT NULL OR attempt < 1 OR retention IS NOT NULL
			OR current_setting('idempotency.max_response_size', true) <> '' THEN
		@writable@
		@names@
		@body@
		@attempt@
		IF retention IS NOT NULL THEN
			ret := @extschema@.idempotent__span(retention, 'retention', 1, @retention_max@);
		END IF;
	ELSE
		-- The most common course: an attempt without a claim, which expires when begin thought it would.
		UPDATE @extschema@.idempotency_keys o SET response = response, status = status, headers = headers, body = body,
				finished_at = now_, retention = NULL
			WHERE o.id = i AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned()
				AND o.attempt = coalesce(attempt, o.attempt) AND o.claim_no IS NULL AND o.sent_at IS NULL AND o.shortened IS NULL
				AND @after(now_, o.retention)@ <= o.expires_at
				AND (SELECT s.max_response_size = 0 FROM @extschema@.idempotency_settings s WHERE s.only_row);
		IF FOUND THEN
			-- [citus
			DELETE FROM @extschema@.idempotency_open o WHERE o.id = i;
			-- ]
			RETURN response;
		END IF;
	END IF;
	UPDATE @extschema@.idempotency_keys o SET response = response, status = status, headers = headers, body = body,
			finished_at = now_, expires_at = CASE WHEN ret IS NULL AND o.sent_at IS NULL AND @after(now_, o.retention)@ <= o.expires_at THEN o.expires_at
				ELSE @extschema@.idempotent__expires(now_, o.sent_at, coalesce(ret, o.retention)) END,
			shortened = CASE WHEN ret < o.retention THEN true END,
			retention = NULL, sent_at = NULL
		WHERE o.id = i AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned()
			AND o.attempt = coalesce(attempt, o.attempt)
		RETURNING o.claim_no, o.attempt, (SELECT s.max_response_size FROM @extschema@.idempotency_settings s WHERE s.only_row)
		INTO claimed, number, most;
	IF FOUND THEN
		-- [citus
		DELETE FROM @extschema@.idempotency_open o WHERE o.id = i;
		-- ]
		IF most > 0 OR claimed IS NOT NULL OR current_setting('idempotency.max_response_size', true) <> '' THEN
			@size@
			IF claimed IS NOT NULL THEN
				UPDATE @extschema@.idempotency_keys o SET claim_no = NULL WHERE o.id = i;
				DELETE FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.attempt IN (number, claimed);
				IF NOT FOUND AND EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.attempt IN (number, claimed)) THEN
					PERFORM @extschema@.idempotent__give_up();
				END IF;
			END IF;
		END IF;
		RETURN response;
	END IF;

	SELECT o.* INTO k FROM @extschema@.idempotency_keys o WHERE o.id = i;
	IF k.finished_at IS NULL AND k.xid = pg_current_xact_id_if_assigned() THEN
		IF attempt IS NOT NULL AND attempt <> k.attempt THEN
			PERFORM @extschema@.idempotent__overtaken(attempt, 'It is not this transaction''s attempt.');
		END IF;
		PERFORM @extschema@.idempotent__give_up();	-- a trigger has suppressed it
	END IF;
	IF attempt IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency attempt was not begun in this transaction',
			HINT = CASE
				WHEN EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL)
					THEN 'An attempt under lease is finished by its number: idempotent_finish(..., attempt => n).'
				WHEN k.expires_at > now_
					THEN 'The key is finished. Where idempotent_begin returns replayed, return its response and call neither the work nor idempotent_finish.'
				ELSE 'Call idempotent_begin before the work, in the same transaction.' END;
	END IF;

	h := @lock(i)@;
	c := @extschema@.idempotent__own(i, h, scope, key, attempt, false);
	@size@
	now_ := clock_timestamp();
	DELETE FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.attempt = attempt;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	DELETE FROM @extschema@.idempotency_keys o WHERE o.id = i AND o.expires_at <= now_;
	ret := coalesce(ret, c.retention);
	ends := @extschema@.idempotent__expires(now_, @sent_by_key(now_, ret)@, ret);
	INSERT INTO @extschema@.idempotency_keys
		(id, scope, key, fingerprint, attempt, status, headers, response, body, first_seen_at, finished_at, expires_at, shortened)
		VALUES (i, scope, key, c.fingerprint, attempt, status, headers, response, body, c.first_seen_at, now_, ends,
			CASE WHEN ret < c.retention THEN true END)
		ON CONFLICT (id) DO NOTHING;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	RETURN response;
END

-- @macro sent_by_key
(SELECT CASE WHEN t.at <= $1 + $2 THEN t.at END FROM (SELECT @extschema@.idempotent__key_time(key) AS at) t)

-- Get the key's row and the claim, which must be this attempt's. A lease that has ended but that nobody took over is still
-- the attempt's own; one that was released or parked is over, unless may_be_ended.
-- @object
CREATE FUNCTION @extschema@.idempotent__own(i uuid, h bigint, scope text, key text, attempt integer, may_be_ended boolean)
	RETURNS @extschema@.idempotency_claims
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
#variable_conflict use_variable
DECLARE
	c @extschema@.idempotency_claims;
	k @extschema@.idempotency_keys;
BEGIN
	k := @extschema@.idempotent__get(i, h, scope, key);
	IF k.scope <> scope OR k.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	END IF;
	SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i FOR UPDATE;
	IF NOT FOUND THEN
		IF @strict@ THEN
			PERFORM @extschema@.idempotent__probe_claim(i);
		END IF;
		PERFORM @extschema@.idempotent__overtaken(attempt, 'The key has been finished or forgotten.');
	ELSIF c.scope <> scope OR c.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	ELSIF c.attempt <> attempt THEN
		PERFORM @extschema@.idempotent__overtaken(attempt, 'Another attempt has taken the key over.');
	ELSIF c.reset_at IS NOT NULL THEN
		PERFORM @extschema@.idempotent__overtaken(attempt, 'The key has been released or forgotten.');
	ELSIF NOT may_be_ended AND (c.retry_at IS NOT NULL OR c.parked_at IS NOT NULL) THEN
		PERFORM @extschema@.idempotent__overtaken(attempt, 'The attempt has been released or parked.');
	END IF;
	RETURN c;
END $$;

-- Write the end of an attempt to its claim, under the attempt's own number.
-- @object
CREATE FUNCTION @extschema@.idempotent__write_release(i uuid, stored integer, attempt integer, error text, retry_after interval, reset boolean)
	RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
#variable_conflict use_variable
DECLARE
	now_ timestamptz := clock_timestamp();
BEGIN
	IF reset THEN
		UPDATE @extschema@.idempotency_claims l SET attempt = attempt, lease_until = now_, fingerprint = NULL, request = NULL,
				checkpoint = NULL, state = NULL, last_error = NULL, retry_at = NULL, reset_at = now_, xid = NULL
			WHERE l.id = i AND l.attempt = stored;
	ELSE
		UPDATE @extschema@.idempotency_claims l SET attempt = attempt, lease_until = now_, last_error = error,
				retry_at = now_ + coalesce(retry_after, @extschema@.idempotent__backoff(attempt, '1 minute', '1 hour')), xid = NULL
			WHERE l.id = i AND l.attempt = stored;
	END IF;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	RETURN true;
END $$;

-- @object
CREATE FUNCTION @extschema@.idempotent__backoff(attempt integer, base interval, cap interval) RETURNS interval
	LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	delay numeric := extract(epoch FROM base) * 1000000;
	most numeric := extract(epoch FROM cap) * 1000000;
BEGIN
	WHILE attempt > 1 AND delay < most LOOP
		delay := delay * 2;
		attempt := attempt - 1;
	END LOOP;
	RETURN (trunc(least(delay, most))::text || ' microseconds')::interval;
END $$;

-- @body idempotent_release
#variable_conflict use_variable
DECLARE
	i uuid;
	k @extschema@.idempotency_keys;
BEGIN
	@writable@
	@names@
	@attempt@
	@required(reset)@
	IF retry_after IS NOT NULL THEN
		retry_after := @extschema@.idempotent__span(retry_after, 'retry_after', 0, '720 hours');
	END IF;
	@name@
	SELECT o.* INTO k FROM @extschema@.idempotency_keys o
		WHERE o.id = i AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned();
	IF FOUND THEN
		IF attempt <> k.attempt THEN
			PERFORM @extschema@.idempotent__overtaken(attempt, 'It is not this transaction''s attempt.');
		END IF;
		DELETE FROM @extschema@.idempotency_keys o WHERE o.id = i;
		IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
		-- [citus
		DELETE FROM @extschema@.idempotency_open o WHERE o.id = i;
		-- ]
		IF k.claim_no IS NOT NULL AND EXISTS
				(SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL AND l.attempt = k.attempt) THEN
			IF error IS NULL AND retry_after IS NULL AND NOT reset THEN
				UPDATE @extschema@.idempotency_claims l SET attempt = k.claim_no WHERE l.id = i AND l.attempt = k.attempt;
			ELSE
				PERFORM @extschema@.idempotent__write_release(i, k.attempt, k.attempt, error, retry_after, reset);
			END IF;
		END IF;
		RETURN true;
	ELSIF attempt IS NULL THEN
		RETURN false;
	END IF;
	PERFORM @extschema@.idempotent__own(i, @lock(i)@, scope, key, attempt, false);
	RETURN @extschema@.idempotent__write_release(i, attempt, attempt, error, retry_after, reset);
END

-- @macro under_lease
	IF EXISTS (SELECT FROM @extschema@.idempotency_keys o
			WHERE o.id = i AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned()) THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency attempt has no lease',
			HINT = 'Checkpoint and park are for work that spans transactions: begin it with lease => ''...''.';
	END IF;

-- @body idempotent_checkpoint
#variable_conflict use_variable
DECLARE
	i uuid;
	now_ timestamptz;
	ends timestamptz;
BEGIN
	@writable@
	@names@
	@required(attempt)@
	@attempt@
	IF lease IS NOT NULL THEN
		lease := @extschema@.idempotent__span(lease, 'lease', 1, '720 hours');
	END IF;
	IF checkpoint = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'checkpoint must not be empty';
	ELSIF checkpoint IS NULL AND state IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'state cannot be given without a checkpoint';
	END IF;
	@name@
	@under_lease@
	PERFORM @extschema@.idempotent__own(i, @lock(i)@, scope, key, attempt, false);
	now_ := clock_timestamp();
	UPDATE @extschema@.idempotency_claims l SET
			checkpoint = coalesce(checkpoint, l.checkpoint),
			state = CASE WHEN checkpoint IS NULL THEN l.state ELSE state END,
			lease = coalesce(lease, l.lease), lease_until = now_ + coalesce(lease, l.lease)
		WHERE l.id = i AND l.attempt = attempt
		RETURNING l.lease_until INTO ends;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	RETURN ends;
END

-- @body idempotent_park
#variable_conflict use_variable
DECLARE
	i uuid;
	now_ timestamptz;
BEGIN
	@writable@
	@names@
	@required(attempt)@
	@attempt@
	IF error IS NULL OR error = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'error must not be null or empty';
	END IF;
	@name@
	@under_lease@
	PERFORM @extschema@.idempotent__own(i, @lock(i)@, scope, key, attempt, true);
	now_ := clock_timestamp();
	UPDATE @extschema@.idempotency_claims l SET last_error = error, lease_until = least(l.lease_until, now_),
			retry_at = NULL, parked_at = now_, xid = NULL
		WHERE l.id = i AND l.attempt = attempt;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	RETURN true;
END

-- @macro parked
($1.parked_at IS NOT NULL OR $1.max_attempts > 0 AND $1.attempt >= $1.max_attempts AND $1.lease_until <= $2)

-- @body idempotent_resume
#variable_conflict use_variable
DECLARE
	now_ timestamptz;
	d record;
	c @extschema@.idempotency_claims;
	r @extschema@.idempotent_claim;
	left_ integer := max_keys;
	got boolean;
BEGIN
	@writable@
	@required(lease)@
	@required(max_keys)@
	lease := @extschema@.idempotent__span(lease, 'lease', 1, '720 hours');
	IF max_keys < 1 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'max_keys must be at least 1';
	END IF;
	now_ := clock_timestamp();
	FOR d IN
		SELECT l.id, l.scope, l.key, l.attempt, @lock(l.id)@ AS h
		FROM @extschema@.idempotency_claims l
		WHERE l.lease_until <= now_ AND (l.retry_at IS NULL OR l.retry_at <= now_)
			AND l.parked_at IS NULL AND l.reset_at IS NULL
			AND (l.max_attempts = 0 OR l.attempt < l.max_attempts)
			AND (scope IS NULL OR l.scope = scope)
			AND (l.xid = pg_current_xact_id_if_assigned()) IS NOT TRUE
		ORDER BY coalesce(l.retry_at, l.lease_until), l.id
	LOOP
		EXIT WHEN left_ = 0;
		CONTINUE WHEN NOT pg_try_advisory_xact_lock(d.h);
		-- In the stricter levels what the snapshot hides is passed over, not an error.
		BEGIN
			got := false;
			IF NOT EXISTS (SELECT FROM @extschema@.idempotency_keys k
					WHERE k.id = d.id AND k.finished_at IS NULL AND k.xid = pg_current_xact_id_if_assigned()) THEN
				PERFORM @extschema@.idempotent__get(d.id, d.h, d.scope, d.key);
				now_ := clock_timestamp();
				UPDATE @extschema@.idempotency_claims l SET attempt = l.attempt + 1, lease = lease, claimed_at = now_,
						lease_until = now_ + lease, retry_at = NULL, parked_at = NULL, xid = pg_current_xact_id()
					WHERE l.id = d.id AND l.attempt = d.attempt AND l.reset_at IS NULL AND l.lease_until <= now_
						AND (l.retry_at IS NULL OR l.retry_at <= now_) AND NOT @parked(l, now_)@
					RETURNING l.* INTO c;
				got := FOUND;
				IF NOT got AND EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = d.id AND l.attempt = d.attempt
						AND l.reset_at IS NULL AND l.lease_until <= now_ AND (l.retry_at IS NULL OR l.retry_at <= now_)
						AND NOT @parked(l, now_)@) THEN
					PERFORM @extschema@.idempotent__give_up();
				END IF;
			END IF;
		EXCEPTION WHEN serialization_failure THEN
			got := false;
		END;
		IF got THEN
			left_ := left_ - 1;
			@claim@
			RETURN NEXT r;
		END IF;
	END LOOP;
END

-- @macro claim
			r.scope := c.scope; r.key := c.key; r.attempt := c.attempt; r.request := c.request; r.checkpoint := c.checkpoint;
			r.state := c.state; r.first_seen_at := c.first_seen_at; r.lease_until := c.lease_until; r.error := c.last_error;

-- @body idempotent_retry
#variable_conflict use_variable
DECLARE
	i uuid;
	now_ timestamptz;
	k @extschema@.idempotency_keys;
	c @extschema@.idempotency_claims;
	r @extschema@.idempotent_claim;
BEGIN
	@writable@
	@names@
	@required(lease)@
	lease := @extschema@.idempotent__span(lease, 'lease', 1, '720 hours');
	@name@
	k := @extschema@.idempotent__get(i, @lock(i)@, scope, key);
	IF k.scope <> scope OR k.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	ELSIF k.id IS NOT NULL AND k.finished_at IS NULL THEN
		PERFORM @extschema@.idempotent__report('open', NULL, NULL);
	END IF;
	SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i FOR UPDATE;
	now_ := clock_timestamp();
	IF c.id IS NULL AND @strict@ THEN
		PERFORM @extschema@.idempotent__probe_claim(i);
	END IF;
	IF c.scope <> scope OR c.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	ELSIF c.xid = pg_current_xact_id_if_assigned() THEN
		PERFORM @extschema@.idempotent__report('open', NULL, NULL);
	ELSIF c.id IS NULL OR c.reset_at IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK410', MESSAGE = 'idempotency key has no claim that could be handed out',
			DETAIL = 'The key has been finished or forgotten, or was never under lease.';
	ELSIF c.lease_until > now_ THEN
		PERFORM @extschema@.idempotent__report('in_progress', c, ceil(extract(epoch FROM c.lease_until - now_))::integer);
	END IF;
	UPDATE @extschema@.idempotency_claims l SET attempt = l.attempt + 1, lease = lease, claimed_at = now_,
			lease_until = now_ + lease, retry_at = NULL, parked_at = NULL, xid = pg_current_xact_id()
		WHERE l.id = i AND l.attempt = c.attempt
		RETURNING l.* INTO c;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	@claim@
	RETURN r;
END

-- @body idempotent_resolve
#variable_conflict use_variable
DECLARE
	i uuid;
	k @extschema@.idempotency_keys;
	c @extschema@.idempotency_claims;
	now_ timestamptz;
	ends timestamptz;
	ret interval;
	most integer;
	stored integer := 0;
	what text;
BEGIN
	@writable@
	@names@
	IF reason IS NULL OR reason = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'reason must not be null or empty';
	END IF;
	@body@
	IF retention IS NOT NULL THEN
		ret := @extschema@.idempotent__span(retention, 'retention', 1, @retention_max@);
	END IF;
	@attempt@
	@required(correct)@
	@name@
	k := @extschema@.idempotent__get(i, @lock(i)@, scope, key);
	SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i FOR UPDATE;
	IF c.id IS NULL AND @strict@ THEN
		PERFORM @extschema@.idempotent__probe_claim(i);
	END IF;
	IF k.id IS NOT NULL AND k.finished_at IS NULL OR c.xid = pg_current_xact_id_if_assigned() THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency attempt was begun in this transaction',
			HINT = 'Finish it with idempotent_finish; idempotent_resolve is for attempts of others.';
	ELSIF k.scope <> scope OR k.key <> key OR c.scope <> scope OR c.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	END IF;
	@size@
	now_ := clock_timestamp();

	IF k.expires_at > now_ THEN
		@seen(k.attempt)@
		IF NOT correct THEN
			RAISE EXCEPTION USING ERRCODE = 'IK409', MESSAGE = 'idempotency key is finished',
				DETAIL = format('Attempt %s has finished it; its answer would be replaced.', k.attempt),
				HINT = 'Look at the stored answer, and pass correct => true and its attempt number if it is wrong.';
		END IF;
		ret := coalesce(ret, @extschema@.idempotent__retention());
		ends := @extschema@.idempotent__expires(now_, @sent_by_key(now_, ret)@, ret);
		INSERT INTO @extschema@.idempotency_corrections (id, scope, key, what, attempt, status, headers, response, body, failed,
				finished_at, corrected_at, corrected_by, reason)
			VALUES (i, scope, key, 'corrected', k.attempt, k.status, k.headers, k.response, k.body, k.failed,
				k.finished_at, clock_timestamp(), session_user, reason);
		IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
		UPDATE @extschema@.idempotency_keys o SET response = response, status = status, headers = headers, body = body,
				failed = NULL, finished_at = now_, expires_at = greatest(o.expires_at, ends)
			WHERE o.id = i;
		IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
		RETURN 'corrected';
	END IF;

	stored := greatest(k.attempt, c.attempt, 0);
	what := 'recorded';
	IF c.id IS NOT NULL AND c.reset_at IS NULL THEN
		what := 'settled';
		stored := c.attempt;
	END IF;
	@seen(stored)@
	IF what = 'settled' AND c.lease_until > now_ THEN
		PERFORM @extschema@.idempotent__report('in_progress', c, ceil(extract(epoch FROM c.lease_until - now_))::integer);
	END IF;
	IF what = 'recorded' AND length(key) > (@setting(max_key_length, number)@) THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key is too long';
	END IF;
	ret := coalesce(ret, CASE WHEN what = 'settled' THEN c.retention ELSE @extschema@.idempotent__retention() END);
	ends := @extschema@.idempotent__expires(now_, @sent_by_key(now_, ret)@, ret);
	INSERT INTO @extschema@.idempotency_corrections (id, scope, key, what, attempt, checkpoint, state, error,
			corrected_at, corrected_by, reason)
		VALUES (i, scope, key, what, nullif(stored, 0),
			CASE WHEN what = 'settled' THEN c.checkpoint END, CASE WHEN what = 'settled' THEN c.state END,
			CASE WHEN what = 'settled' THEN c.last_error END, clock_timestamp(), session_user, reason);
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	DELETE FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.attempt = c.attempt;
	IF NOT FOUND AND c.id IS NOT NULL THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	DELETE FROM @extschema@.idempotency_keys o WHERE o.id = i AND o.expires_at <= now_;
	INSERT INTO @extschema@.idempotency_keys
		(id, scope, key, fingerprint, attempt, status, headers, response, body, first_seen_at, finished_at, expires_at)
		VALUES (i, scope, key, CASE WHEN what = 'settled' THEN c.fingerprint END, stored + 1, status, headers, response, body,
			CASE WHEN what = 'settled' THEN c.first_seen_at ELSE now_ END, now_, ends)
		ON CONFLICT (id) DO NOTHING;
	IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
	RETURN what;
END

-- What is stored must still be what the caller saw.
-- @macro seen
	IF attempt <> $1 THEN
		PERFORM @extschema@.idempotent__overtaken(attempt, CASE WHEN $1 = 0 THEN 'Nothing is stored of the key.'
			ELSE 'What is stored has another attempt number.' END);
	END IF;

-- @body idempotent_derive
#variable_conflict use_variable
BEGIN
	@names@
	IF step IS NULL OR step = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'step must not be null or empty';
	END IF;
	RETURN @hex(scope, key)@ || encode(substr(sha256(int8send(octet_length(@utf8(scope)@)) || @utf8(scope)@
		|| @utf8(key)@ || '\x00'::bytea || @utf8(step)@), 1, 16), 'hex');
END

-- @body idempotent_backoff
BEGIN
	@required(attempt)@
	@required(base)@
	@required(cap)@
	@required(jitter)@
	IF jitter = 'NaN' OR jitter < 0 OR jitter > 1 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'jitter must be between 0 and 1';
	END IF;
	@attempt@
	base := @extschema@.idempotent__span(base, 'base', 1, interval '2562047788 hours');
	cap := @extschema@.idempotent__span(cap, 'cap', 1, interval '2562047788 hours');
	RETURN @extschema@.idempotent__backoff(attempt, base, cap)
		- (trunc((extract(epoch FROM @extschema@.idempotent__backoff(attempt, base, cap)) * 1000000)::float8 * jitter * random())::bigint::text
			|| ' microseconds')::interval;
END

-- @body idempotent_call
BEGIN
	RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = 'idempotent_call is not in the SQL edition',
		HINT = 'Call idempotent_begin, the statement, and idempotent_finish in one transaction.';
END

-- @body idempotent_stats idempotent_stats_reset
BEGIN
	RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = 'the SQL edition has no counters',
		HINT = 'Counters need the C edition.';
END

-- A batch's keys expire as begin_many says, whenever they are finished: "shortened", which is null in the unfinished row of a
-- single attempt, is false in theirs. A batch of more than 200 keys takes no advisory lock of each: the lock table is not made for that.
-- @body idempotent_begin_many
#variable_conflict use_variable
DECLARE
	ret interval;
	ids uuid[]; locks bigint[]; names_ text[]; new_ uuid[]; todo uuid[]; got uuid[];
	dated uuid[]; dated_keys text[]; dates timestamptz[]; old uuid[]; ends timestamptz[];
	now_ timestamptz;
	k record;
	n integer := coalesce(cardinality(keys), 0);
BEGIN
	@writable@
	@scope@
	@required(keys)@
	IF retention IS NULL THEN
		ret := @extschema@.idempotent__retention();
	ELSE
		ret := @extschema@.idempotent__span(retention, 'retention', 1, @retention_max@);
	END IF;
	IF EXISTS (SELECT FROM unnest(keys) u (key) WHERE u.key IS NULL OR u.key = '') THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key must not be null or empty';
	ELSIF n = 0 THEN
		RETURN;
	END IF;
	SELECT array_agg(x.id ORDER BY x.id), array_agg(x.key ORDER BY x.id), array_agg(@lock(x.id)@ ORDER BY x.id)
		INTO ids, names_, locks
		FROM (SELECT DISTINCT u.key, (@hex(scope, u.key)@)::uuid AS id FROM unnest(keys) u (key)) x;
	IF cardinality(ids) <= 200 THEN
		PERFORM pg_advisory_xact_lock(u.h) FROM unnest(locks) u (h);
	END IF;

	todo := ids;
	FOR round IN 1..10 LOOP
		now_ := clock_timestamp();
		FOR k IN SELECT o.*, u.key AS asked FROM unnest(todo) w (id) JOIN unnest(ids, names_) u (id, key) ON u.id = w.id
				JOIN @extschema@.idempotency_keys o ON o.id = u.id WHERE o.scope <> scope OR o.key <> u.key OR o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned() LOOP
			IF k.finished_at IS NULL AND k.scope = scope AND k.xid = pg_current_xact_id_if_assigned() AND NOT k.id = ANY (coalesce(new_, '{}')) THEN
				PERFORM @extschema@.idempotent__report('open', NULL, NULL);
			ELSIF k.finished_at IS NOT NULL THEN
				RAISE EXCEPTION USING ERRCODE = 'IK422',
					MESSAGE = format('idempotency key "%s" of the batch was already used with a different request', k.asked);
			END IF;
		END LOOP;
		-- Known: finished and not expired.
		SELECT array_agg(o.id) INTO got FROM @extschema@.idempotency_keys o
			WHERE o.id = ANY (todo) AND o.finished_at IS NOT NULL AND o.expires_at > now_;
		SELECT array_agg(u.id ORDER BY u.id) INTO todo FROM unnest(todo) u (id) LEFT JOIN unnest(got) g (id) ON g.id = u.id
			WHERE g.id IS NULL;
		EXIT WHEN todo IS NULL;
		IF round = 10 THEN
			PERFORM @extschema@.idempotent__give_up();
		END IF;
		@many_late@
		DELETE FROM @extschema@.idempotency_keys o WHERE o.id = ANY (todo)
			AND (o.expires_at <= now_ AND o.finished_at IS NOT NULL
				OR o.finished_at IS NULL AND (o.xid = pg_current_xact_id_if_assigned()) IS NOT TRUE);
		WITH put AS (
			INSERT INTO @extschema@.idempotency_keys AS o
				(id, scope, key, attempt, first_seen_at, expires_at, shortened, retention, sent_at, xid)
			SELECT u.id, scope, u.key, 1, now_, @expires(now_, s.at, ret)@, false, ret, s.at, pg_current_xact_id()
			FROM unnest(todo) w (id) JOIN unnest(ids, names_) u (id, key) ON u.id = w.id, LATERAL (SELECT CASE WHEN t.at <= now_ + ret THEN t.at END AS at
				FROM (SELECT CASE WHEN length(u.key) IN (26, 36) THEN @extschema@.idempotent__key_time(u.key) END AS at) t) s
			ORDER BY u.id
			ON CONFLICT (id) DO NOTHING RETURNING o.id)
		SELECT array_agg(p.id) INTO got FROM put p;
		new_ := new_ || got;
		-- By the clock, as in begin: what kept a key may have been pruned while the rows were waited for.
		FOR k IN SELECT t.key FROM unnest(dated, dated_keys, dates) t (id, key, at)
				WHERE t.id = ANY (got) AND t.at + ret <= clock_timestamp() ORDER BY t.id LIMIT 1 LOOP
			@too_late@
		END LOOP;
		-- [citus
		INSERT INTO @extschema@.idempotency_open (id, key) SELECT u.id, u.key FROM unnest(got) g (id) JOIN unnest(ids, names_) u (id, key) ON u.id = g.id;
		-- ]
		SELECT array_agg(u.id ORDER BY u.id) INTO todo FROM unnest(todo) u (id)
			LEFT JOIN unnest(got) g (id) ON g.id = u.id WHERE g.id IS NULL;
		EXIT WHEN todo IS NULL;
	END LOOP;
	IF new_ IS NULL THEN
		-- a claim outranks an expired key only, and there is none
		RETURN;
	END IF;

	IF @strict@ THEN
		SELECT array_agg(l.id) INTO got FROM @extschema@.idempotency_claims l WHERE l.id = ANY (new_);
		PERFORM @extschema@.idempotent__probe_claim(u.id) FROM unnest(new_) u (id) LEFT JOIN unnest(got) g (id) ON g.id = u.id
			WHERE g.id IS NULL;
	END IF;
	FOR k IN SELECT l.key, @parked(l, now_)@ AND l.reset_at IS NULL AS parked, l.scope <> scope OR l.key <> u.key AS other
			FROM unnest(new_) w (id) JOIN unnest(ids, names_) u (id, key) ON u.id = w.id
			JOIN @extschema@.idempotency_claims l ON l.id = u.id ORDER BY l.id LIMIT 1 LOOP
		IF k.other THEN
			PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
		END IF;
		RAISE EXCEPTION USING ERRCODE = CASE WHEN k.parked THEN 'IK423' ELSE 'IK409' END,
			MESSAGE = format('idempotency key "%s" of the batch is or was under lease', k.key),
			HINT = 'Use scopes of their own for keys that are begun in batches.';
	END LOOP;
	IF EXISTS (SELECT FROM unnest(new_) w (id) JOIN unnest(ids, names_) u (id, key) ON u.id = w.id WHERE length(u.key) >
			(@setting(max_key_length, number)@)) THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key is too long';
	END IF;
	RETURN QUERY SELECT u.key FROM unnest(keys) WITH ORDINALITY u (key, n)
		JOIN unnest(ids, names_) x (id, key) ON x.key = u.key JOIN unnest(new_) w (id) ON w.id = x.id
		GROUP BY u.key ORDER BY min(u.n);
END

-- @macro many_late
		SELECT array_agg(x.id), array_agg(x.key), array_agg(x.at) INTO dated, dated_keys, dates FROM (
			SELECT u.id, u.key, @extschema@.idempotent__key_time(u.key) AS at
			FROM unnest(todo) w (id) JOIN unnest(ids, names_) u (id, key) ON u.id = w.id WHERE length(u.key) IN (26, 36)) x
			WHERE x.at <= now_ + ret;
		IF dated IS NOT NULL THEN
			SELECT array_agg(l.id) INTO got FROM @extschema@.idempotency_claims l WHERE l.id = ANY (dated) AND l.reset_at IS NULL;
			SELECT array_agg(o.id), array_agg(o.expires_at) INTO old, ends FROM @extschema@.idempotency_keys o
				WHERE o.id = ANY (dated) AND o.finished_at IS NOT NULL AND o.shortened IS NOT TRUE;
			FOR k IN SELECT t.key FROM unnest(dated, dated_keys, dates) t (id, key, at)
					LEFT JOIN unnest(got) l (id) ON l.id = t.id LEFT JOIN unnest(old, ends) o (id, expires_at) ON o.id = t.id
					WHERE l.id IS NULL AND (t.at + ret <= now_ OR t.at < o.expires_at) ORDER BY t.id LIMIT 1 LOOP
				@too_late@
			END LOOP;
		END IF;

-- @macro too_late
RAISE EXCEPTION USING ERRCODE = 'IK412', MESSAGE = 'an idempotency key of the batch is older than its retention',
					DETAIL = format('The key is "%s".', k.key),
					HINT = 'Find out by other means what became of it, and leave it out of the batch.';

-- @body idempotent_finish_many
#variable_conflict use_variable
DECLARE
	ids uuid[];
	now_ timestamptz := clock_timestamp();
	n bigint := 0;
	late text;
	d record;
BEGIN
	@writable@
	@scope@
	@required(keys)@
	IF EXISTS (SELECT FROM unnest(keys) u (key) WHERE u.key IS NULL OR u.key = '') THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'idempotency key must not be null or empty';
	END IF;
	SELECT array_agg(DISTINCT (@hex(scope, u.key)@)::uuid) INTO ids FROM unnest(keys) u (key);
	IF ids IS NULL THEN
		RETURN 0;
	END IF;
	-- As a filter: it is not for the index on expires_at.
	SELECT min(o.key) FILTER (WHERE o.expires_at <= now_) INTO late FROM @extschema@.idempotency_keys o
		WHERE o.id = ANY (ids) AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned() AND o.shortened IS NOT NULL;
	IF late IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency key of a batch has expired before it was finished',
			DETAIL = format('The key is "%s".', late), HINT = 'The retention of a batch must be longer than its transaction.';
	END IF;
	FOR d IN
		UPDATE @extschema@.idempotency_keys o SET finished_at = now_,
			expires_at = CASE WHEN o.shortened IS NOT NULL THEN o.expires_at ELSE @expires(now_, o.sent_at, o.retention)@ END,
			shortened = NULL, retention = NULL, sent_at = NULL
		WHERE o.id = ANY (ids) AND o.finished_at IS NULL AND o.xid = pg_current_xact_id_if_assigned()
		RETURNING o.id, o.claim_no, o.attempt
	LOOP
		n := n + 1;
		IF d.claim_no IS NOT NULL THEN
			DELETE FROM @extschema@.idempotency_claims l WHERE l.id = d.id AND l.attempt IN (d.attempt, d.claim_no);
		END IF;
	END LOOP;
	-- [citus
	DELETE FROM @extschema@.idempotency_open o WHERE o.id = ANY (ids);
	-- ]
	IF n < cardinality(ids) THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency attempt was not begun in this transaction',
			HINT = 'Finish the keys that idempotent_begin_many returned, in the same transaction.';
	END IF;
	RETURN n;
END

-- @body idempotent_lookup
#variable_conflict use_variable
DECLARE
	i uuid; h bigint;
	me xid8 := CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_xact_id_if_assigned() END;
	k @extschema@.idempotency_keys;
	c @extschema@.idempotency_claims;
	a @extschema@.idempotent_attempt;
	now_ timestamptz;
	busy boolean;
	sent timestamptz;
	ret interval;
	fp bytea;
BEGIN
	@shapes@
	@names@
	@name@
	h := @lock(i)@;
	-- First who is at it: an attempt that finishes in between is then seen as finished, rather than as neither.
	busy := EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
			AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
			AND l.classid = ((h >> 32) & 4294967295)::oid AND l.objid = (h & 4294967295)::oid
			AND l.pid IS DISTINCT FROM pg_backend_pid());
	-- And the claim before the key, for the same reason.
	SELECT l.* INTO c FROM @extschema@.idempotency_claims l WHERE l.id = i AND l.reset_at IS NULL;
	SELECT o.* INTO k FROM @extschema@.idempotency_keys o WHERE o.id = i;
	now_ := clock_timestamp();
	a.replayed := false;
	IF k.id IS NOT NULL AND k.finished_at IS NULL THEN
		busy := busy OR k.xid = me;
		k := NULL;
	END IF;
	IF k.scope <> scope OR k.key <> key OR c.scope <> scope OR c.key <> key THEN
		a.outcome := 'mismatch';
	ELSIF k.expires_at > now_ THEN
		a.outcome := 'replayed'; a.replayed := true; a.attempt := k.attempt; a.status := k.status;
		a.headers := k.headers; a.response := k.response; a.body := k.body;
		a.first_seen_at := k.first_seen_at; a.finished_at := k.finished_at; a.expires_at := k.expires_at;
	ELSIF c.id IS NOT NULL THEN
		@judge@
		IF a.outcome IS NULL THEN
			a.outcome := CASE WHEN busy THEN 'in_progress' ELSE 'recovered' END;
			a.retry_after := CASE WHEN busy THEN 1 END;
		END IF;
		a.attempt := c.attempt + CASE WHEN a.outcome = 'recovered' THEN 1 ELSE 0 END;
		a.checkpoint := c.checkpoint; a.state := c.state; a.first_seen_at := c.first_seen_at; a.error := c.last_error;
		a.expires_at := now_ + c.retention;
	ELSIF busy THEN
		a.outcome := 'in_progress'; a.retry_after := 1;
	ELSE
		ret := @extschema@.idempotent__retention();
		sent := @extschema@.idempotent__key_time(key);
		IF sent <= now_ + ret AND (sent + ret <= now_ OR k.shortened IS NOT TRUE AND sent < k.expires_at) THEN
			a.outcome := 'expired';
		END IF;
	END IF;
	IF a.outcome IS NOT NULL THEN
		RETURN NEXT a;
	END IF;
END

-- @object
CREATE FUNCTION @extschema@.idempotent__forget(i uuid, h bigint, scope text, key text) RETURNS boolean
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
#variable_conflict use_variable
DECLARE
	k @extschema@.idempotency_keys;
	done boolean := false;
	now_ timestamptz;
BEGIN
	k := @extschema@.idempotent__get(i, h, scope, key);
	IF k.id IS NOT NULL AND k.finished_at IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'IK500', MESSAGE = 'idempotency key is of an attempt that this transaction has begun and not finished',
			HINT = 'Finish it, or give it up with idempotent_release.';
	ELSIF k.scope <> scope OR k.key <> key THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	END IF;
	IF @strict@ AND NOT EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i) THEN
		PERFORM @extschema@.idempotent__probe_claim(i);
	END IF;
	IF k.id IS NOT NULL THEN
		DELETE FROM @extschema@.idempotency_keys o WHERE o.id = i;
		IF NOT FOUND THEN PERFORM @extschema@.idempotent__give_up(); END IF;
		done := true;
	END IF;
	now_ := clock_timestamp();
	IF EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND (l.scope <> scope OR l.key <> key)) THEN
		PERFORM @extschema@.idempotent__report('mismatch', NULL, NULL);
	END IF;
	-- The attempt number alone stays, so that its worker, should it still be on its way, is fenced.
	UPDATE @extschema@.idempotency_claims l SET scope = NULL, key = NULL, fingerprint = NULL, request = NULL, checkpoint = NULL,
			state = NULL, last_error = NULL, lease_until = least(l.lease_until, now_), retry_at = NULL, parked_at = NULL,
			reset_at = coalesce(l.reset_at, now_), xid = NULL
		WHERE l.id = i AND (l.reset_at IS NULL OR l.scope IS NOT NULL);
	IF FOUND THEN
		RETURN true;
	ELSIF EXISTS (SELECT FROM @extschema@.idempotency_claims l WHERE l.id = i AND (l.reset_at IS NULL OR l.scope IS NOT NULL)) THEN
		PERFORM @extschema@.idempotent__give_up();
	END IF;
	RETURN done;
END $$;

-- @body idempotent_forget
#variable_conflict use_variable
DECLARE
	i uuid;
	done boolean;
BEGIN
	@writable@
	@names@
	@name@
	done := @extschema@.idempotent__forget(i, @lock(i)@, scope, key);
	DELETE FROM @extschema@.idempotency_corrections o WHERE o.id = i;
	RETURN done OR FOUND;
END

-- @body idempotent_forget_scope
#variable_conflict use_variable
DECLARE
	n bigint := 0;
	f record;
BEGIN
	@writable@
	@scope@
	@required(max_keys)@
	IF max_keys < 1 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'max_keys must be at least 1';
	END IF;
	FOR f IN
		SELECT u.id, u.key, @lock(u.id)@ AS h FROM (
			SELECT o.id, o.key FROM @extschema@.idempotency_keys o WHERE o.scope = scope
			UNION SELECT l.id, l.key FROM @extschema@.idempotency_claims l WHERE l.scope = scope
			ORDER BY 1 LIMIT max_keys) u ORDER BY u.id
	LOOP
		IF @extschema@.idempotent__forget(f.id, f.h, scope, f.key) THEN
			n := n + 1;
		END IF;
	END LOOP;
	DELETE FROM @extschema@.idempotency_corrections o WHERE o.scope = scope;
	RETURN n;
END

-- @body idempotent_prune
#variable_conflict use_variable
DECLARE
	now_ timestamptz := clock_timestamp();
	n bigint;
	kept interval;
	-- [citus
	ids uuid[];
	-- ]
BEGIN
	@writable@
	@required(max_keys)@
	IF max_keys < 1 THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'max_keys must be at least 1';
	END IF;
	-- [plain
	DELETE FROM @extschema@.idempotency_keys k WHERE k.id = ANY (ARRAY(
			SELECT o.id FROM @extschema@.idempotency_keys o WHERE o.expires_at <= now_ AND o.finished_at IS NOT NULL
			LIMIT max_keys FOR UPDATE SKIP LOCKED))
		AND k.expires_at <= now_ AND k.finished_at IS NOT NULL;
	GET DIAGNOSTICS n = ROW_COUNT;
	DELETE FROM @extschema@.idempotency_claims l WHERE l.id = ANY (ARRAY(
			SELECT o.id FROM @extschema@.idempotency_claims o WHERE o.reset_at + greatest(o.retention, '30 days') <= now_
			LIMIT max_keys FOR UPDATE SKIP LOCKED))
		AND l.reset_at + greatest(l.retention, '30 days') <= now_;
	-- ]
	-- [citus
	SELECT array_agg(o.id ORDER BY o.id) INTO ids FROM (SELECT o.id FROM @extschema@.idempotency_keys o
		WHERE o.expires_at <= now_ AND o.finished_at IS NOT NULL LIMIT max_keys) o;
	DELETE FROM @extschema@.idempotency_keys k WHERE k.id = ANY (ids) AND k.expires_at <= now_ AND k.finished_at IS NOT NULL;
	GET DIAGNOSTICS n = ROW_COUNT;
	SELECT array_agg(o.id ORDER BY o.id) INTO ids FROM (SELECT o.id FROM @extschema@.idempotency_claims o
		WHERE @after(o.reset_at, greatest(o.retention, '30 days'))@ <= now_ LIMIT max_keys) o;
	IF ids IS NOT NULL THEN
		DELETE FROM @extschema@.idempotency_claims l WHERE l.id = ANY (ids) AND @after(l.reset_at, greatest(l.retention, '30 days'))@ <= now_;
	END IF;
	-- ]
	kept := @setting(corrections_retention, span)@;
	IF kept > interval '0' THEN
		-- [citus
		DELETE FROM @extschema@.idempotency_corrections o WHERE o.corrected_at <= now_ - kept;
		-- ]
		-- [plain
		DELETE FROM @extschema@.idempotency_corrections o WHERE o.correction = ANY (ARRAY(
			SELECT p.correction FROM @extschema@.idempotency_corrections p WHERE p.corrected_at + kept <= now_
			LIMIT max_keys FOR UPDATE SKIP LOCKED));
		-- ]
	END IF;
	RETURN n;
END

-- @body idempotent_reconcile
	SELECT * FROM @extschema@.idempotent__reconcile($1, $2, $3, $4, $5)

-- @object
CREATE FUNCTION @extschema@.idempotent__reconcile(theirs jsonb, step text, since timestamptz, until timestamptz, scope_ text)
	RETURNS TABLE (verdict text, r_scope text, r_key text, r_attempt integer, r_status integer, r_response jsonb,
		r_first_seen_at timestamptz, r_theirs jsonb)
	LANGUAGE plpgsql SECURITY DEFINER @planned@ AS $$
#variable_conflict use_column
BEGIN
	@shapes@
	@required(theirs)@
	@required(since)@
	IF step IS NULL OR step = '' THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'step must not be null or empty';
	END IF;
	IF (CASE WHEN jsonb_typeof(theirs) <> 'array' THEN true ELSE EXISTS (
			SELECT FROM jsonb_array_elements(theirs) e (line) WHERE jsonb_typeof(e.line) <> 'object'
				OR jsonb_typeof(e.line -> 'key') IS DISTINCT FROM 'string'
				OR coalesce(jsonb_typeof(e.line -> 'ok'), 'null') NOT IN ('boolean', 'null')) END) THEN
		RAISE EXCEPTION USING ERRCODE = 'IK400', MESSAGE = 'theirs must be a JSON array of objects with "key" and "ok"';
	END IF;
	RETURN QUERY
	WITH lines AS (
		SELECT lower((l.line ->> 'key') COLLATE "C") AS derived, l.line, l.n,
			CASE l.line -> 'ok' WHEN 'true' THEN true WHEN 'false' THEN false END AS ok
		FROM jsonb_array_elements(theirs) WITH ORDINALITY AS l (line, n)),
	sorted AS MATERIALIZED (
		SELECT *, first_value(n) OVER of_key AS first, count(*) FILTER (WHERE ok) OVER of_key AS times_ok
		FROM lines WINDOW of_key AS (PARTITION BY derived ORDER BY ok DESC NULLS LAST, n
			ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)),
	said AS MATERIALIZED (
		SELECT derived, line, n, ok,
			CASE WHEN octet_length(derived) = 64 AND derived !~ '[^0-9a-f]' THEN left(derived, 32)::uuid END AS id
		FROM sorted WHERE n = first),
	twice AS (
		SELECT first AS n, jsonb_agg(line ORDER BY n) AS lines FROM sorted WHERE ok AND times_ok > 1 GROUP BY first),
	open AS MATERIALIZED (
		SELECT s.*, c.scope, c.key, c.attempt, NULL::integer AS status, NULL::jsonb AS response, c.first_seen_at,
			false AS finished, false AS refused
		FROM said s JOIN @extschema@.idempotency_claims c ON c.id = s.id WHERE c.reset_at IS NULL),
	found_ AS MATERIALIZED (
		SELECT *, @of_step@ AS is_of_step FROM open
		UNION ALL
		SELECT s.*, k.scope, k.key, k.attempt, k.status, k.response, k.first_seen_at, true, @refused@, @of_step@
		FROM said s JOIN @extschema@.idempotency_keys k ON k.id = s.id
		WHERE k.finished_at IS NOT NULL AND s.id NOT IN (SELECT id FROM open)),
	matched AS (SELECT * FROM found_ WHERE is_of_step),
	compared AS (
		SELECT CASE WHEN NOT finished THEN CASE WHEN ok THEN 'open_here' ELSE 'open_refused' END
				WHEN refused AND ok THEN 'refused_here'
				WHEN NOT refused AND NOT ok THEN 'refused_there' END AS verdict_, @ours@, line
		FROM matched WHERE ok IS NOT NULL)
	SELECT * FROM compared WHERE verdict_ IS NOT NULL
	UNION ALL
	SELECT 'unknown_here', NULL, NULL, NULL, NULL, NULL, NULL, line FROM said WHERE ok AND n NOT IN (SELECT n FROM found_)
	UNION ALL
	SELECT 'twice_there', @ours@, lines FROM twice JOIN matched USING (n)
	UNION ALL
	SELECT 'twice_there', NULL, NULL, NULL, NULL, NULL, NULL, lines FROM twice WHERE n NOT IN (SELECT n FROM found_)
	UNION ALL
	SELECT 'open_missing', c.scope, c.key, c.attempt, NULL, NULL, c.first_seen_at, NULL
		FROM @extschema@.idempotency_claims c WHERE c.reset_at IS NULL AND @in_window(c)@
	UNION ALL
	SELECT 'missing_there', k.scope, k.key, k.attempt, k.status, k.response, k.first_seen_at, NULL
		FROM @extschema@.idempotency_keys k
		WHERE k.finished_at IS NOT NULL AND k.expires_at >= since AND NOT @refused@ AND @in_window(k)@
			AND NOT EXISTS (SELECT FROM @extschema@.idempotency_claims nc WHERE nc.id = k.id AND nc.reset_at IS NULL);
END $$;

-- @macro refused
(coalesce(k.failed, false) OR coalesce(k.status >= 400, false))

-- @macro in_window
$1.first_seen_at >= since AND $1.first_seen_at < coalesce(until, 'infinity')
	AND CASE WHEN scope_ IS NULL THEN true WHEN right(scope_, 1) = '%' THEN starts_with($1.scope, left(scope_, -1))
		ELSE $1.scope = scope_ END
	AND $1.id NOT IN (SELECT id FROM matched)

-- @macro ours
scope, key, attempt, status, response, first_seen_at

-- @macro of_step
derived = @extschema@.idempotent_derive(scope, key, step)
