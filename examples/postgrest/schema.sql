-- Safe retries behind PostgREST. Needs the extension, either edition, in the schema "idempotency". Only the schema "api" is exposed.

SELECT format('CREATE ROLE %s', role)
FROM (VALUES ('authenticator LOGIN NOINHERIT'), ('anon NOLOGIN'), ('authenticated NOLOGIN')) AS roles (role)
WHERE to_regrole(split_part(role, ' ', 1)) IS NULL \gexec
SELECT format('GRANT %s TO authenticator', role) FROM unnest('{anon,authenticated}'::text[]) AS role
WHERE NOT pg_has_role('authenticator', role, 'MEMBER') \gexec

CREATE SCHEMA once;
CREATE SCHEMA shop;
CREATE SCHEMA api;

-- The request -----------------------------------------------------------------

-- Endpoints that insist on a key. The others run unprotected without one.
CREATE TABLE once.key_required (path text PRIMARY KEY);

CREATE FUNCTION once.header(name text) RETURNS text STABLE LANGUAGE sql
RETURN NULLIF(current_setting('request.headers', true), '')::json ->> name;

-- Whose request it is, from the token that PostgREST has verified. NULL: nobody's.
CREATE FUNCTION once.account() RETURNS text STABLE LANGUAGE sql
RETURN NULLIF(current_setting('request.jwt.claims', true), '')::json ->> 'sub';

-- The role belongs to it: what a user's first request was shown need not be meant for another role of theirs.
CREATE FUNCTION once.scope() RETURNS text STABLE LANGUAGE sql
RETURN json_build_array(NULLIF(current_setting('request.jwt.claims', true), '')::json ->> 'role', once.account())::text;

-- An error with a status and headers of our choice, in PostgREST's notation; the transaction is rolled back.
CREATE FUNCTION once.refuse(status integer, code text, message text, headers json DEFAULT '{}') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE SQLSTATE 'PGRST' USING
		MESSAGE = json_build_object('code', code, 'message', message, 'details', NULL, 'hint', NULL),
		DETAIL = json_build_object('status', status, 'headers', headers);
END $$;

-- The header's key: a quoted string, as the IETF draft has it, or bare. NULL: none was sent, and none is needed.
CREATE FUNCTION once.key() RETURNS text STABLE LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	sent text := once.header('idempotency-key');
BEGIN
	IF sent ~ '^"([^"\\]|\\["\\])+"$' THEN
		RETURN regexp_replace(substr(sent, 2, length(sent) - 2), '\\(["\\])', '\1', 'g');
	ELSIF sent ~ '^[^",\s]+$' THEN
		RETURN sent;
	ELSIF sent IS NOT NULL THEN
		PERFORM once.refuse(400, 'IK400', 'The header Idempotency-Key is malformed.');
	ELSIF EXISTS (SELECT FROM once.key_required WHERE path = current_setting('request.path', true)) THEN
		PERFORM once.refuse(400, 'IK400', 'This endpoint requires the header Idempotency-Key.');
	END IF;
	RETURN NULL;
END $$;

-- Begin an attempt on the request's key. The outcome is started, replayed or, without a key, NULL; all others are refused.
-- The key belongs to the account alone. So method and path are compared, as is what the caller passes.
CREATE FUNCTION once.begin(content jsonb) RETURNS idempotency.idempotent_attempt
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	key text := once.key();
	attempt idempotency.idempotent_attempt;
BEGIN
	IF key IS NULL THEN
		RETURN NULL;
	ELSIF once.account() IS NULL THEN
		-- All anonymous callers have one scope: one of them would get another's response.
		PERFORM once.refuse(401, 'IK401', 'An Idempotency-Key needs an account.');
	END IF;
	attempt := idempotency.idempotent_try_begin(once.scope(), key, request => jsonb_build_object(
		'method', current_setting('request.method', true), 'path', current_setting('request.path', true), 'content', content));
	CASE attempt.outcome
		WHEN 'in_progress' THEN
			PERFORM once.refuse(409, 'IK409', 'The first request with this key is in progress.',
				json_build_object('Retry-After', GREATEST(attempt.retry_after, 1)::text));
		WHEN 'mismatch' THEN PERFORM once.refuse(422, 'IK422', 'This key belongs to another request.');
		WHEN 'expired' THEN PERFORM once.refuse(412, 'IK412', 'This request is older than keys are kept.');
		WHEN 'parked' THEN PERFORM once.refuse(423, 'IK423', 'The outcome of the first request is not known yet.');
		ELSE RETURN attempt;
	END CASE;
END $$;

-- The first request's status and headers, marked as a replay. The setting takes an array of objects with one header each.
CREATE FUNCTION once.replay(attempt idempotency.idempotent_attempt) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('response.status', attempt.status::text, true),
		set_config('response.headers', (COALESCE(attempt.headers, '[]') || '[{"Idempotency-Replayed": "true"}]')::text, true);
END $$;

-- A. Functions under /rpc -----------------------------------------------------

-- The first request's answer. NULL: this is the first request, or it has no key; do the work and pass its answer to once.keep.
CREATE FUNCTION once.answered(arguments jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	attempt idempotency.idempotent_attempt := once.begin(arguments);
BEGIN
	IF attempt.outcome = 'replayed' THEN
		PERFORM once.replay(attempt);
		RETURN attempt.response;
	END IF;
	RETURN NULL;
END $$;

CREATE FUNCTION once.keep(answer jsonb, status integer DEFAULT 200) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	key text := once.key();
BEGIN
	-- SQL's NULL would say "not answered yet".
	answer := COALESCE(answer, 'null');
	PERFORM set_config('response.status', status::text, true);
	IF key IS NOT NULL THEN
		PERFORM idempotency.idempotent_finish(once.scope(), key, response => answer, status => status,
			headers => NULLIF(current_setting('response.headers', true), '')::jsonb);
	END IF;
	RETURN answer;
END $$;

-- B. Tables and views, by db-pre-request --------------------------------------

-- Attempts that the end of the transaction finishes. No row outlives its transaction, hence unlogged.
CREATE UNLOGGED TABLE once.unfinished (scope text NOT NULL, key text NOT NULL, status integer NOT NULL);

-- What PostgREST sends by itself, unless response.status says otherwise.
CREATE FUNCTION once.usual_status() RETURNS integer STABLE LANGUAGE sql
RETURN CASE WHEN current_setting('request.method', true) = 'POST' THEN 201
	WHEN once.header('prefer') ~ 'return=representation' THEN 200 ELSE 204 END;

-- PostgREST calls this in the request's transaction, before its own query. Functions protect themselves, see A.
CREATE FUNCTION once.pre_request() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	attempt idempotency.idempotent_attempt;
BEGIN
	IF current_setting('request.method', true) NOT IN ('POST', 'PATCH', 'PUT', 'DELETE')
		OR current_setting('request.path', true) LIKE '/rpc/%' THEN
		RETURN;
	END IF;
	-- The body cannot be seen here, its digest can.
	attempt := once.begin(to_jsonb(once.header('content-digest')));
	PERFORM set_config('once.outcome', COALESCE(attempt.outcome, ''), true),
		set_config('once.rows', COALESCE(attempt.response::text, '[]'), true);
	IF attempt.outcome = 'started' THEN
		INSERT INTO once.unfinished VALUES (once.scope(), once.key(), once.usual_status());
	ELSIF attempt.response IS NOT NULL THEN
		PERFORM once.replay(attempt);
	ELSIF attempt.outcome = 'replayed' THEN
		-- Only an error keeps PostgREST's query from running.
		PERFORM once.refuse(attempt.status, 'IK200', 'Done by the first request with this key.', '{"Idempotency-Replayed": "true"}');
	END IF;
END $$;

CREATE FUNCTION once.finish() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	DELETE FROM once.unfinished WHERE (scope, key) = (NEW.scope, NEW.key);
	PERFORM idempotency.idempotent_finish(NEW.scope, NEW.key,
		response => NULLIF(NULLIF(current_setting('once.rows', true), ''), '[]')::jsonb,
		status => COALESCE(NULLIF(current_setting('response.status', true), '')::integer, NEW.status),
		headers => NULLIF(current_setting('response.headers', true), '')::jsonb);
	RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER finish AFTER INSERT ON once.unfinished
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION once.finish();

-- For a view on the table that the argument names. The first request inserts the row and records it; a replay returns the row as it
-- was recorded, so that PostgREST makes the first body of it. A column that is null or not sent gets its default. As a trigger for the
-- statement it finds out that a retry has fewer rows.
CREATE FUNCTION once.insert_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	outcome text := current_setting('once.outcome', true);
	rows jsonb := NULLIF(current_setting('once.rows', true), '');
	asked jsonb := to_jsonb(NEW);
	columns text := (SELECT string_agg(quote_ident(c.key), ', ') FROM jsonb_each(jsonb_strip_nulls(asked)) AS c);
	made jsonb;
BEGIN
	IF TG_LEVEL = 'STATEMENT' THEN
		IF outcome = 'replayed' AND rows <> '[]' THEN
			PERFORM once.refuse(422, 'IK422', 'This key belongs to another request.');
		END IF;
		RETURN NULL;
	ELSIF outcome = 'replayed' THEN
		IF rows #> '{0,asked}' IS DISTINCT FROM asked THEN
			PERFORM once.refuse(422, 'IK422', 'This key belongs to another request.');
		END IF;
		made := rows #> '{0,made}';
		PERFORM set_config('once.rows', (rows - 0)::text, true);
	ELSE
		EXECUTE format('INSERT INTO %1$s AS r (%2$s) SELECT %2$s FROM jsonb_populate_record(NULL::%1$s, $1) RETURNING to_jsonb(r)',
			TG_ARGV[0]::regclass, columns) INTO made USING asked;
		IF outcome = 'started' THEN
			PERFORM set_config('once.rows', (rows || jsonb_build_object('asked', asked, 'made', made))::text, true);
		END IF;
	END IF;
	NEW := jsonb_populate_record(NEW, made);
	RETURN NEW;
END $$;

-- The shop --------------------------------------------------------------------

CREATE TABLE shop.orders (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account		text NOT NULL DEFAULT once.account(),
	item		text NOT NULL,
	amount		bigint NOT NULL CHECK (amount > 0),
	placed_at	timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.orders USING (account = once.account());

CREATE FUNCTION shop.place_order(item text, amount bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	placed shop.orders;
BEGIN
	INSERT INTO shop.orders (item, amount) VALUES (item, amount) RETURNING * INTO placed;
	IF amount > 1000000 THEN
		RAISE SQLSTATE 'PT402' USING MESSAGE = 'The card is declined.';
	END IF;
	RETURN to_jsonb(placed);
END $$;

-- A. COALESCE does not evaluate its second argument when the first has a value: the work is not done again.
CREATE FUNCTION api.place_order(item text, amount bigint) RETURNS jsonb LANGUAGE sql AS $$
	SELECT COALESCE(once.answered(jsonb_build_object('item', item, 'amount', amount)),
		once.keep(shop.place_order(item, amount), 201))
$$;

-- B, a table as it is.
CREATE TABLE api.notes (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account		text NOT NULL DEFAULT once.account(),
	note		text NOT NULL CHECK (note <> '')
);
ALTER TABLE api.notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON api.notes USING (account = once.account());

-- B, a view whose replays have the first body.
CREATE VIEW api.orders WITH (security_invoker = true) AS SELECT id, item, amount, placed_at FROM shop.orders;
CREATE TRIGGER insert_row INSTEAD OF INSERT ON api.orders FOR EACH ROW EXECUTE FUNCTION once.insert_row('shop.orders');
CREATE TRIGGER all_rows AFTER INSERT ON api.orders FOR EACH STATEMENT EXECUTE FUNCTION once.insert_row();

INSERT INTO once.key_required VALUES ('/orders'), ('/rpc/place_order');

-- Privileges ------------------------------------------------------------------
-- Nobody but the owner of the functions above calls the extension or sees a key.

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA once, shop, api FROM PUBLIC;
GRANT USAGE ON SCHEMA once, api TO anon, authenticated;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA once TO anon, authenticated;
REVOKE EXECUTE ON FUNCTION once.begin, once.replay, once.finish FROM anon, authenticated;
GRANT USAGE ON SCHEMA shop TO authenticated;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA shop, api TO authenticated;
GRANT SELECT, INSERT ON shop.orders, api.orders TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON api.notes TO authenticated;
