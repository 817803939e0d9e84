/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  The digest of a request, by which a retry is compared with the first call.
 *
 * The canonical form, version 1, is the token stream of the jsonb.  Each
 * token is a tag byte and what makes it self-delimiting, so that no two
 * streams can be read as the same bytes; integers are big-endian.
 *
 *	  n t f			null, true, false
 *	  # n w s d*	number: digits, weight and sign as in numeric_send, 16
 *					bits each, then n digits in base 10000, without the
 *					display scale and without zeros at either end
 *	  " l b*		string in UTF-8: 32-bit length and bytes
 *	  [ c v*		array: 32-bit count and values
 *	  { c (k v)*	object: 32-bit count; each key as a string, and its value
 *
 * An object's keys come in the order of their length, and of their bytes where
 * that is equal.  jsonb keeps them so, in the database's encoding; only where
 * that is not UTF-8 must they be sorted anew.  A top-level scalar is the scalar
 * alone, which keeps 1 and [1] apart.
 *
 * Portions Copyright (c) 2026, the idempotency developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "fingerprint.h"
#include "sha256.h"
#include "utf8.h"

#define FORM_DIGEST		0
#define FORM_JSONB_V1	1

/* Header of numeric_send's output: ndigits, weight, sign, dscale. */
#define NUMERIC_HEADER	(4 * sizeof(int16))

/* A tag and a 32-bit length or count. */
static void
hash_head(Sha256 *hash, char tag, uint32 n)
{
	uint8		head[1 + sizeof(uint32)];

	n = pg_hton32(n);
	head[0] = (uint8) tag;
	memcpy(head + 1, &n, sizeof(n));
	idem_sha256_update(hash, head, sizeof(head));
}

/*
 * 1, 1.0 and 1e0 are equal and differ in display scale alone, which is left
 * out.  Digits are stored without zeros at either end; that is made sure of
 * here rather than trusted, since a fingerprint lives long.
 */
static void
hash_numeric_into(Sha256 *hash, Numeric num)
{
	bytea	   *wire = DatumGetByteaPP(DirectFunctionCall1(numeric_send,
														   NumericGetDatum(num)));
	const char *data = VARDATA_ANY(wire);
	const char *digits = data + NUMERIC_HEADER;
	int16		head[3];
	int16		ndigits;
	int16		weight;

	memcpy(head, data, sizeof(head));
	ndigits = (int16) pg_ntoh16(head[0]);
	weight = (int16) pg_ntoh16(head[1]);

	while (ndigits > 0 && digits[0] == 0 && digits[1] == 0)
	{
		digits += sizeof(int16);
		ndigits--;
		weight--;
	}
	while (ndigits > 0 &&
		   digits[2 * ndigits - 2] == 0 && digits[2 * ndigits - 1] == 0)
		ndigits--;

	head[0] = pg_hton16(ndigits);
	head[1] = ndigits > 0 ? pg_hton16(weight) : 0;
	if (ndigits == 0)
		head[2] = 0;			/* zero has no sign */
	idem_sha256_update(hash, "#", 1);
	idem_sha256_update(hash, head, sizeof(head));
	idem_sha256_update(hash, digits, ndigits * sizeof(int16));
	pfree(wire);
}

static void
hash_string_into(Sha256 *hash, const char *string, int len)
{
	char	   *utf8 = utf8_from_server(string, &len);

	hash_head(hash, '"', len);
	idem_sha256_update(hash, utf8, len);
	if (utf8 != string)
		pfree(utf8);			/* a request may have millions of them */
}

/* Feed a value that is neither array nor object: its type, then its content. */
static void
hash_scalar_into(Sha256 *hash, const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvNull:
			idem_sha256_update(hash, "n", 1);
			break;
		case jbvBool:
			idem_sha256_update(hash, v->val.boolean ? "t" : "f", 1);
			break;
		case jbvNumeric:
			hash_numeric_into(hash, v->val.numeric);
			break;
		case jbvString:
			hash_string_into(hash, v->val.string.val, v->val.string.len);
			break;
		default:
			elog(ERROR, "unexpected jsonb value type: %d", (int) v->type);
	}
}

/* Feed the canonical form to the hash, in the order in which jsonb has it. */
static void
hash_in_stored_order(Sha256 *hash, Jsonb *jb)
{
	JsonbIterator *it = JsonbIteratorInit(&jb->root);
	JsonbIteratorToken token;
	JsonbValue	v;

	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
				if (!v.val.array.rawScalar)
					hash_head(hash, '[', v.val.array.nElems);
				break;
			case WJB_BEGIN_OBJECT:
				hash_head(hash, '{', v.val.object.nPairs);
				break;
			case WJB_KEY:
			case WJB_VALUE:
			case WJB_ELEM:
				hash_scalar_into(hash, &v);
				break;
			default:
				break;			/* the counts already mark the ends */
		}
	}
}

/* A pair of an object, its key in UTF-8. */
typedef struct Pair
{
	const char *key;
	int			len;
	JsonbValue	value;
} Pair;

static int
compare_pairs(const void *a, const void *b)
{
	const Pair *left = a;
	const Pair *right = b;

	if (left->len != right->len)
		return left->len < right->len ? -1 : 1;
	return memcmp(left->key, right->key, left->len);
}

static void hash_sorted(Sha256 *hash, JsonbContainer *container);

static void
hash_value_sorted(Sha256 *hash, const JsonbValue *value)
{
	if (value->type == jbvBinary)
		hash_sorted(hash, value->val.binary.data);
	else
		hash_scalar_into(hash, value);
}

/*
 * Feed an object with its keys in the order of their UTF-8 bytes, shorter
 * keys first, as jsonb orders them in a database whose encoding is UTF-8.
 */
static void
hash_object_sorted(Sha256 *hash, JsonbIterator *it, int npairs)
{
	Pair	   *pairs = palloc(sizeof(Pair) * (npairs + 1));
	JsonbValue	key;

	for (int i = 0; i < npairs; i++)
	{
		(void) JsonbIteratorNext(&it, &key, true);
		pairs[i].len = key.val.string.len;
		pairs[i].key = utf8_from_server(key.val.string.val, &pairs[i].len);
		(void) JsonbIteratorNext(&it, &pairs[i].value, true);
	}
	qsort(pairs, npairs, sizeof(Pair), compare_pairs);
	hash_head(hash, '{', npairs);
	for (int i = 0; i < npairs; i++)
	{
		hash_head(hash, '"', pairs[i].len);
		idem_sha256_update(hash, pairs[i].key, pairs[i].len);
		hash_value_sorted(hash, &pairs[i].value);
	}
	pfree(pairs);
}

/* The same where the database's encoding orders an object's keys otherwise. */
static void
hash_sorted(Sha256 *hash, JsonbContainer *container)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue	v;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (JsonbIteratorNext(&it, &v, true) == WJB_BEGIN_OBJECT)
	{
		hash_object_sorted(hash, it, v.val.object.nPairs);
		return;
	}
	if (!v.val.array.rawScalar)
		hash_head(hash, '[', v.val.array.nElems);
	while (JsonbIteratorNext(&it, &v, true) == WJB_ELEM)
		hash_value_sorted(hash, &v);
}

/* Feed the canonical form to the hash. */
static void
hash_jsonb_into(Sha256 *hash, Jsonb *jb)
{
	if (utf8_is_server_encoding())
		hash_in_stored_order(hash, jb);
	else
		hash_sorted(hash, &jb->root);
}

void
fingerprint_of_jsonb(Jsonb *request, Fingerprint *result)
{
	Sha256		hash;

	idem_sha256_init(&hash);
	hash_jsonb_into(&hash, request);
	idem_sha256_final(&hash, result->bytes + 1);
	result->bytes[0] = FORM_JSONB_V1;
	result->len = 1 + SHA256_LENGTH;
}

void
fingerprint_of_digest(const void *digest, int len, Fingerprint *result)
{
	Assert(len >= 1 && len <= FINGERPRINT_MAX_DIGEST);
	result->bytes[0] = FORM_DIGEST;
	memcpy(result->bytes + 1, digest, len);
	result->len = 1 + len;
}

bool
fingerprint_differs(const Fingerprint *stored, const Fingerprint *given)
{
	if (stored->len == 0 || given->len == 0)
		return false;

	/* A form that this release does not know says nothing. */
	if (stored->bytes[0] > FORM_JSONB_V1)
		return false;
	return stored->len != given->len ||
		memcmp(stored->bytes, given->bytes, stored->len) != 0;
}
