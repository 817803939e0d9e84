#!/usr/bin/python3
"""Test vectors of ids, lock bits, derived keys and fingerprints, computed independently of both editions.

identity.json and fingerprint.json are this program's output: make.py identity, make.py fingerprint.  They freeze the form:
two ids for one key would be two executions.  test/checks/vectors compares the files with the output, test/sql/identity.sql
the server with the files.

make.py random COUNT writes the derived keys of random keys as CSV, for script/check-fingerprint: scope, key, step, derived.
"""
import csv
import decimal
import hashlib
import json
import random
import re
import sys
import uuid

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I | re.A)
ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}", re.I | re.A)
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def millis(key):
    if UUID7.fullmatch(key):
        return int(key.replace("-", "")[:12], 16)
    if ULID.fullmatch(key):
        value = 0
        for digit in key[:10].lower():
            value = value * 32 + CROCKFORD.index(digit)
        return value
    return None


def digest(scope, key, rest=b""):
    scope, key = scope.encode(), key.encode()
    return hashlib.sha256(len(scope).to_bytes(8, "big") + scope + key + rest).digest()


def identity(scope, key):
    hashed, ms = bytearray(digest(scope, key)[:16]), millis(key)
    if ms is None:
        hashed[0] &= 0x7F
        return bytes(hashed)
    return ((1 << 47) | (ms & ((1 << 47) - 1))).to_bytes(6, "big") + bytes(hashed[6:])


def derive(scope, key, step):
    return identity(scope, key).hex() + digest(scope, key, b"\0" + step.encode())[:16].hex()


# --- fingerprints ---

def head(tag, n):
    return tag + n.to_bytes(4, "big")


def text(value):
    encoded = value.encode()
    return head(b'"', len(encoded)) + encoded


def number(value):
    """Digits, weight and sign as numeric_send has them, without zeros at either end."""
    sign, digits, exponent = decimal.Decimal(value).as_tuple()
    digits = "".join(map(str, digits)).lstrip("0")
    if not digits:
        return b"#" + bytes(6)
    # Point the decimal so that groups of four end at it.
    if exponent > 0:
        digits, exponent = digits + "0" * exponent, 0
    whole, fraction = (digits[:exponent], digits[exponent:]) if exponent else (digits, "")
    if -exponent > len(digits):
        whole, fraction = "", "0" * (-exponent - len(digits)) + digits
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[i:i + 4]) for i in range(0, len(whole + fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups, weight = groups[1:], weight - 1
    while groups and groups[-1] == 0:
        groups = groups[:-1]
    out = b"#" + len(groups).to_bytes(2, "big") + weight.to_bytes(2, "big", signed=True)
    return out + (0x4000 if sign else 0).to_bytes(2, "big") + b"".join(g.to_bytes(2, "big") for g in groups)


def canonical(value):
    if value is None:
        return b"n"
    if value is True or value is False:
        return b"t" if value else b"f"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, (int, decimal.Decimal)):
        return number(value)
    if isinstance(value, list):
        return head(b"[", len(value)) + b"".join(map(canonical, value))
    pairs = sorted((len(k.encode()), k.encode(), k) for k in value)
    return head(b"{", len(value)) + b"".join(text(k) + canonical(value[k]) for _, _, k in pairs)


def fingerprint(source):
    value = json.loads(source, parse_int=decimal.Decimal, parse_float=decimal.Decimal)
    return "01" + hashlib.sha256(canonical(value)).hexdigest()


KEYS = [
    ("shop", "k"), ("", "x"), ("a", "bc"), ("ab", "c"), ("shop", "order 42"), ("shop", " k"), ("shop", "k "),
    ("acct_42 POST /v1/charges", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"),       # UUIDv4
    ("s", "019aba10-7a30-7cc3-98c4-dc0c0c07398f"), ("s", "019ABA10-7A30-7CC3-98C4-DC0C0C07398F"),
    ("s", "019aBA10-7a30-7Cc3-98c4-dC0c0c07398f"), ("t", "019aba10-7a30-7cc3-98c4-dc0c0c07398f"),
    ("s", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"), ("s", "00000000-0000-7000-8000-000000000000"),
    ("s", "ffffffff-ffff-7fff-bfff-ffffffffffff"), ("s", "7fffffff-ffff-7000-8000-000000000000"),
    ("s", "80000000-0000-7000-8000-000000000000"),
    # no UUIDv7
    ("s", "017f22e2-79b0-4cc3-98c4-dc0c0c07398f"), ("s", "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f"),
    ("s", "017f22e2-79b0-7cc3-78c4-dc0c0c07398f"), ("s", "017f22e279b07cc398c4dc0c0c07398f"),
    ("s", "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}"), ("s", "017f22e2-79b0-7cc3-98c4-dc0c0c07398"),
    ("s", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f0"), ("s", "017f22e2-79b0-7cc3-98c4-dc0c0c07398g"),
    ("s", "017f22e27-9b0-7cc3-98c4-dc0c0c07398f"), ("s", "urn:uuid:017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
    ("s", "017f22e2-79b0-7cc3-98c4-dc0c0c07398\u0663"), ("s", "017f22e2_79b0_7cc3_98c4_dc0c0c07398f"),
    # ULIDs
    ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAV"), ("s", "01arz3ndektsv4rrffq69g5fav"), ("s", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"),
    ("s", "00000000000000000000000000"), ("s", "00000000000000000000000042"), ("s", "20261126010500123456789012"),
    # no ULID
    ("s", "81ARZ3NDEKTSV4RRFFQ69G5FAV"), ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAI"), ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAL"),
    ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAO"), ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAU"), ("s", "01ARZ3NDEKTSV4RRFFQ69G5FA"),
    ("s", "01ARZ3NDEKTSV4RRFFQ69G5FAVX"), ("s", "01ARZ3NDEKTSV4RRFFQ69G5FA-"), ("s", "key_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    # all other characters
    ("Müller", "Zahlung äöü"), ("€", "€"), ("s", "😀"), ("s", "👩\u200d👩\u200d👧"), ("s", "\ufeffbom"), ("s", "a\u0301"), ("s", "á"),
    ("s", "\u0001\u001f\u007f"), ("s", "tab\tnewline\n"), ("s", "\u202ertl"), ("s", "\\ \" ' $1 %s"),
    ("s" * 1024, "k"), ("s", "k" * 255), ("s", "é" * 255), ("s", "x" * 55), ("s", "x" * 56), ("s", "x" * 64),
]
STEPS = ["charge", "refund", "Gebühr", "\u0001", "x" * 200]

REQUESTS = [
    "null", "true", "false", "0", "-0", "0.0", "1", "1.0", "1e0", "10e-1", "-1", "100", "1e2", "10000", "10001", "1e4", "9999.0001",
    "0.0001", "0.00001", "123456789.987654321", "-12345678901234567890", "9007199254740993", "9007199254740992", "1e30", "1.5e-20",
    '""', '"a"', '"1"', '"ä€😀"', '"\\n\\t\\"\\\\"', "[]", "{}", "[1]", "[[1]]", "[1,2]", "[2,1]", "[null]", "[[],{}]",
    '{"a":1}', '{"a":1,"b":2}', '{"b":2,"a":1}', '{"aa":1,"b":2}', '{"abc":1,"äö":2}', '{"ü":[{"é":null}],"zz":{"y":-1.50,"x":"s"}}',
    '{"":{}}', '{"a":{"a":{"a":[{"a":[]}]}}}', '{"amount":2000,"currency":"eur","source":"tok_visa","metadata":{"order":"6735"}}',
]


# --- random keys: times in them, nearly so, and any text ---

ALPHABET = "0123456789abcdefABCDEFghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ--__{} \u0663\uff11\u0131\u017f\u212aé"
CHARACTERS = ALPHABET + "\u0001\t\n\r\x7f\\\"',;äöü€漢😀\u200d\ufeff\u202e\u0301"


def any_text(longest):
    return "".join(random.choices(CHARACTERS, k=random.randint(1, longest)))


def random_case(text):
    return random.choice([str.lower, str.upper, lambda t: "".join(random.choice([c.lower(), c.upper()]) for c in t)])(text)


def with_time(length):
    """A UUIDv7 or ULID of any time: recent ones, and ones that fill all bits."""
    bits = random.getrandbits(128)
    if random.random() < 0.5:
        bits = (1451606400000 + random.getrandbits(40)) << 80 | random.getrandbits(80)
    if length == 36:
        return str(uuid.UUID(int=bits & ~(0xF << 76) & ~(3 << 62) | 7 << 76 | 2 << 62))
    return "".join(CROCKFORD[bits >> shift & 31] for shift in range(125, -1, -5))


def nearly(key):
    """One character replaced, left out, put in, or moved."""
    at, new = random.randrange(len(key)), random.choice(ALPHABET)
    moved = key[:at] + key[at + 1:]
    to = random.randrange(len(key))
    return random.choice([key[:at] + new + key[at + 1:], moved, key[:at] + new + key[at:], moved[:to] + key[at] + moved[to:]])


def random_key():
    key = random_case(with_time(random.choice([26, 36])))
    return random.choices([key, nearly(key), str(uuid.UUID(int=random.getrandbits(128))), any_text(60), any_text(255)],
                          [40, 40, 5, 10, 5])[0]


def write_random(count):
    random.seed(42)
    out = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for _ in range(count):
        row = any_text(200), random_key(), any_text(20)
        out.writerow(row + (derive(*row),))


def write_vectors(what):
    if what == "identity":
        rows = [{"scope": s, "key": k, "id": identity(s, k).hex(), "lock": identity(s, k)[8:].hex(),
                 "derived": {step: derive(s, k, step) for step in STEPS}} for s, k in KEYS if s]
    else:
        rows = [{"request": r, "fingerprint": fingerprint(r)} for r in REQUESTS]
    print("[" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]")


if sys.argv[1] == "random":
    write_random(int(sys.argv[2]))
else:
    write_vectors(sys.argv[1])
