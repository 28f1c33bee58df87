#!/usr/bin/env python3
"""Writes the conformance vectors beside this file, and manifest.json, which says what each one is.

Needs nothing but Python. The bytes are put together by hand here, never by a safetensors library, and the verdicts are
written down by hand: they are what the official crate 0.8.0 does (compat) and what its README and schema demand
(strict). See README.md for the form of the manifest.
"""

import json
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent
FILES, SETS = HERE / "files", HERE / "sets"
cases, names = [], set()

BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
GOOD = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


def data(length, start=0):
    return bytes((start + 7 * i) % 256 for i in range(length))


def frame(header, body=b"", length=None):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensor(dtype, shape, begin=0, end=None):
    if end is None:
        count = 1
        for dim in shape:
            count *= dim
        end = begin + count * BITS[dtype] // 8
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def add(name, content, why, compat="ok", strict=None, tensors=None, metadata=None):
    """One file. `tensors`: name -> (dtype, shape, begin, end) of what a reader must find."""
    assert name not in names, name
    names.add(name)
    (FILES / f"{name}.safetensors").write_bytes(content)
    case = {"file": f"files/{name}.safetensors", "why": why, "compat": compat, "strict": strict or compat}
    if compat == "ok":
        case["tensors"] = {key: {"dtype": d, "shape": s, "data_offsets": [b, e]}
                           for key, (d, s, b, e) in (tensors or {}).items()}
        case["metadata"] = metadata
    cases.append(case)


U4 = {"a": ("U8", [4], 0, 4)}


def valid(name, entries, why, body=None, metadata=None, pad="", header=None, strict=None):
    """A file whose header is the compact JSON of `entries`, or `header` if given, and valid under compat."""
    found = {key: (e["dtype"], e["shape"], *e["data_offsets"]) for key, e in entries.items()}
    end = max([e["data_offsets"][1] for e in entries.values()], default=0)
    if header is None:
        whole = dict(entries) if metadata is None else {"__metadata__": metadata, **entries}
        header = json.dumps(whole, separators=(",", ":"), ensure_ascii=False)
    add(name, frame(header + pad, data(end) if body is None else body), why, strict=strict, tensors=found,
        metadata=metadata)


def departs(name, header, rule, why, body=4, tensors=U4, metadata=None):
    """What the official crate lets pass and the specification forbids."""
    add(name, frame(header, data(body)), why, "ok", rule, tensors, metadata)


def bad(name, header, kind, why, body=4, strict=None):
    add(name, frame(header, data(body)), why, kind, strict)


def entry(dtype='"U8"', shape="[4]", offsets="[0,4]", more=""):
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


def right():
    for dtype, bits in BITS.items():
        shape = [2, 4] if bits < 8 else [2, 3]
        valid(f"dtype-{dtype.lower()}", {"a": tensor(dtype, shape)}, f"a tensor of {dtype}")
    valid("empty", {}, "no tensors and no metadata: a header of two bytes")
    valid("empty-padded", {}, "the header is padded to 8 bytes", pad="      ")
    valid("metadata-only", {}, "metadata and no tensors", metadata={"format": "pt"})
    valid("metadata-empty", {"a": tensor("U8", [4])}, "metadata without entries", metadata={})
    valid("metadata-text", {"a": tensor("U8", [4])}, "any text is a value",
          metadata={"": "", "é": "\u2028", "json": '{"a":[1]}', "line": "a\nb\t\"c\"\\"})
    valid("metadata-last", {"a": tensor("U8", [4])}, "metadata may stand behind the tensors", metadata={"k": "v"},
          header=f'{{"a":{GOOD},"__metadata__":{{"k":"v"}}}}')
    valid("scalar", {"a": tensor("F32", [])}, "a shape of no dimensions is one element")
    valid("zero-dimension", {"a": tensor("F32", [0])}, "a dimension of 0 holds nothing")
    valid("zero-dimensions", {"a": tensor("F32", [3, 0, 5]), "b": tensor("I8", [0, 0])}, "nor do several")
    valid("zero-between", {"a": tensor("U8", [2]), "b": tensor("F64", [0], 2), "c": tensor("U8", [2], 2)},
          "a tensor without data between two with some")
    valid("zero-of-subbyte", {"a": tensor("F4", [0, 3])}, "nothing ends on a byte")
    valid("ones", {"a": tensor("I16", [1] * 9)}, "nine dimensions of 1")
    valid("rank-64", {"a": tensor("U8", [1] * 63 + [4])}, "64 dimensions")
    valid("subbyte-total", {"a": tensor("F4", [2, 3])}, "only the total must end on a byte, not a row")
    valid("subbyte-six", {"a": tensor("F6_E2M3", [4]), "b": tensor("F6_E3M2", [2, 2], 3)}, "four values of 6 bits")
    valid("unaligned", {"a": tensor("U8", [1]), "b": tensor("F64", [1], 1)}, "a tensor that starts at an odd byte")
    valid("header-unpadded", {"abc": tensor("U8", [4])}, "a header whose length is no multiple of 8")
    valid("header-padded", {"a": tensor("U8", [4])}, "spaces behind the header", pad=" " * 100)
    valid("order-reversed", {"b": tensor("U8", [2], 2), "a": tensor("U8", [2])},
          "the header need not follow the order of the data")
    valid("fields-reordered", {"a": tensor("U8", [4])}, "the fields of an entry in another order",
          header='{"a":{"data_offsets":[0,4],"shape":[4],"dtype":"U8"}}')
    valid("white-space", {"a": tensor("U8", [4])}, "white space between all tokens",
          header='{ "a" :\t{ "dtype" : "U8" ,\n "shape" : [ 4 ] ,\r "data_offsets" : [ 0 , 4 ] } }')
    valid("name-empty", {"": tensor("U8", [4])}, "a name without characters")
    valid("name-path", {"../../etc/passwd": tensor("U8", [4])}, "names are no paths")
    valid("name-unicode", {"é\u2028\U0001f600": tensor("U8", [4])}, "names are any text")
    valid("name-delete", {"a\x7f": tensor("U8", [4])}, "DEL needs no escape")
    valid("name-escaped", {'"\\/\b\f\n\r\t': tensor("U8", [4])}, "all short escapes",
          header='{"\\"\\\\\\/\\b\\f\\n\\r\\t":' + GOOD + "}")
    valid("name-surrogates", {"\U0001f600": tensor("U8", [4])}, "a pair of surrogates in escapes",
          header='{"\\ud83d\\ude00":' + GOOD + "}")
    valid("name-hex-case", {"éé": tensor("U8", [4])}, "hexadecimal digits of both cases",
          header='{"\\u00e9\\u00E9":' + GOOD + "}")
    valid("name-like-metadata", {"__metadata": tensor("U8", [4])}, "almost the special key")
    valid("name-long", {"x" * 3000: tensor("U8", [4])}, "a name of 3000 characters")
    valid("field-escaped", {"a": tensor("U8", [4])}, "an escape in the name of a field",
          header='{"a":{"\\u0064type":"U8","shape":[4],"data_offsets":[0,4]}}')
    valid("dtype-escaped", {"a": tensor("U8", [4])}, "an escape in a dtype", header=entry(dtype='"\\u00558"'))
    valid("largest-number", {"a": tensor("U8", [0, 2**48 - 1])}, "the largest number that the schema allows")
    valid("many", {f"layers.{i}.weight": tensor("BF16", [2], 4 * i) for i in range(100)}, "a hundred tensors")
    valid("values-nan", {"a": tensor("F32", [2])}, "NaN and infinity are values",
          body=struct.pack("<ff", float("nan"), float("inf")))
    valid("values-bool", {"a": tensor("BOOL", [2])}, "the value of a BOOL is not looked at", body=b"\x02\xff")


def departures():
    for name, space in [("space", " "), ("tab", "\t"), ("line-feed", "\n"), ("return", "\r"), ("mixed", " \n\t ")]:
        departs(f"leading-{name}", space + entry(), "leading-space", "the header must begin with {")
        if name != "space":
            departs(f"padding-{name}", entry() + space, "padding", "padding must be spaces")
    departs("duplicate-tensor", f'{{"a":{GOOD},"a":{GOOD}}}', "duplicate-tensor", "the last one wins")
    departs("duplicate-tensor-differs", '{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"a":' + GOOD + "}",
            "duplicate-tensor", "the first is as if it were not there")
    departs("duplicate-tensor-apart", f'{{"a":{GOOD},"b":{json.dumps(tensor("U8", [0], 4))},"a":{GOOD}}}',
            "duplicate-tensor", "with another between them", tensors={**U4, "b": ("U8", [0], 4, 4)})
    departs("duplicate-tensor-escaped", f'{{"a":{GOOD},"\\u0061":{GOOD}}}', "duplicate-tensor",
            "the same name in another spelling")
    departs("duplicate-metadata", f'{{"__metadata__":{{"k":"v","k":"w"}},"a":{GOOD}}}', "duplicate-metadata",
            "the last one wins", metadata={"k": "w"})
    departs("duplicate-metadata-escaped", f'{{"__metadata__":{{"k":"v","\\u006b":"w"}},"a":{GOOD}}}',
            "duplicate-metadata", "the same key in another spelling", metadata={"k": "w"})
    for name, value in [("number", "1"), ("float", "-1.5e-3"), ("string", '"x"'), ("null", "null"), ("true", "true"),
                        ("object", '{"y":[]}'), ("array", "[[],{},1]"), ("deep", "[" * 124 + "]" * 124)]:
        departs(f"unknown-field-{name}", entry(more=f',"x":{value}'), "unknown-field", "a field that nobody knows")
    departs("unknown-field-twice", entry(more=',"x":1,"x":2'), "unknown-field", "and again")
    departs("unknown-field-first", f'{{"a":{{"x":0,{GOOD[1:]}}}', "unknown-field", "before the known ones")
    departs("unknown-field-case", entry(more=',"Shape":[4]'), "unknown-field", "fields are case-sensitive")
    departs("tensor-as-array", '{"a":["U8",[4],[0,4]]}', "tensor-as-array", "an array instead of an object")
    departs("dtype-as-object", entry(dtype='{"U8":null}'), "dtype-as-object", "an object instead of a string")
    departs("null-metadata", f'{{"__metadata__":null,"a":{GOOD}}}', "null-metadata", "null is no map")
    departs("escaped-metadata-key", f'{{"\\u005f_metadata__":{{"k":"v"}},"a":{GOOD}}}', "escaped-metadata-key",
            "who compares bytes takes it for a tensor", metadata={"k": "v"})
    departs("name-nul", f'{{"a\\u0000b":{GOOD}}}', "nul-in-name", "C readers see another name",
            tensors={"a\0b": U4["a"]})
    departs("large-dimension", entry(shape="[0,281474976710656]", offsets="[0,0]"), "large-number",
            "2^48 is more than the schema allows", body=0, tensors={"a": ("U8", [0, 2**48], 0, 0)})
    departs("large-dimension-first", entry(shape="[0,9223372036854775808,4]", offsets="[0,0]"), "large-number",
            "a product that is 0 before it can overflow", body=0, tensors={"a": ("U8", [0, 2**63, 4], 0, 0)})
    departs("zeros-between-spaces", "\n" + entry() + "\n", "leading-space", "two departures; the first is named")


def wrong_lengths():
    for length in range(8):
        add(f"short-{length}", b"\x02\0\0\0\0\0\0"[:length], f"{length} bytes are no length", "header-too-small")
    add("length-zero", frame(""), "a header of no bytes is no JSON", "header-syntax")
    add("length-zero-data", frame("", data(4)), "nor is it with data behind it", "header-syntax")
    add("length-limit", frame(entry(), data(4), 100_000_001), "one more than the limit", "header-too-large")
    add("length-at-limit", frame(entry(), data(4), 100_000_000), "the limit is allowed, the file is shorter",
        "header-truncated")
    add("length-huge", frame(entry(), data(4), 2**64 - 1), "the largest number", "header-too-large")
    add("length-wraps", frame(entry(), data(4), 2**64 - 8), "which 8 more wraps to 0", "header-too-large")
    add("length-beyond", frame(entry(), b"", len(entry()) + 1), "one byte more than there is", "header-truncated")
    add("length-into-data", frame(entry(), data(4), len(entry()) + 2), "the header takes two bytes of data",
        "header-syntax")
    add("length-short", frame(entry(), data(4), len(entry()) - 1), "the brace is taken for data", "header-syntax")
    add("length-big-endian", struct.pack(">Q", len(entry())) + entry().encode() + data(4), "big-endian",
        "header-too-large")
    add("data-missing", frame(entry(), data(3)), "a byte of data is missing", "data-length")
    add("data-none", frame(entry()), "all data is missing", "data-length")
    add("data-over", frame(entry(), data(5)), "a byte that belongs to no tensor", "data-length")
    add("data-over-empty", frame("{}", data(1)), "data without tensors", "data-length")
    add("pickle", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "a pickle", "header-too-large")
    add("zip", b"PK\x03\x04" + bytes(30), "a zip archive", "header-truncated", )
    add("gguf", b"GGUF\x03\0\0\0" + bytes(16), "a GGUF file", "header-too-large")
    add("json", (entry() + "    ").encode(), "a header without its length", "header-too-large")


def wrong_text():
    for name, text, why in [("overlong", b"\xc0\xaf", "an overlong form of /"), ("continuation", b"\x80", "alone"),
                            ("truncated", b"\xe2\x82", "a character without its end"),
                            ("surrogate", b"\xed\xa0\x80", "a surrogate"), ("above", b"\xf4\x90\x80\x80", "U+110000"),
                            ("latin", b"\xe9", "Latin-1")]:
        bad(f"utf8-{name}", b'{"' + text + b'":' + GOOD.encode() + b"}", "header-encoding", why)
    bad("utf8-outside", entry().encode() + b"\xff", "header-encoding", "behind the end of the JSON")
    bad("utf16", entry().encode("utf-16-le"), "header-syntax", "UTF-16 is UTF-8 with NULs here")
    for name, header, why in [
        ("bom", "\ufeff" + entry(), "a byte order mark"),
        ("nul-padding", entry() + "\0\0\0", "NULs as padding"),
        ("form-feed", entry() + "\f", "a form feed is no white space in JSON"),
        ("no-break-space", "\u00a0" + entry(), "nor is a no-break space"),
        ("truncated", entry()[:-1], "the last brace is missing"),
        ("two-objects", entry() + "{}", "two objects"),
        ("behind", entry() + " x", "something behind the end"),
        ("comma-object", f'{{"a":{GOOD},}}', "a comma before the end"),
        ("comma-entry", entry(more=","), "a comma before the end of an entry"),
        ("comma-shape", entry(shape="[4,]"), "a comma before the end of a shape"),
        ("comma-double", f'{{"a":{GOOD},,"b":{GOOD}}}', "two commas"),
        ("comma-none", f'{{"a":{GOOD} "b":{GOOD}}}', "no comma"),
        ("colon-none", f'{{"a" {GOOD}}}', "no colon"),
        ("comment", f'{{/* x */"a":{GOOD}}}', "a comment"),
        ("comment-line", f'{{"a":{GOOD}// x\n}}', "a comment to the end of the line"),
        ("quotes-single", entry().replace('"', "'"), "single quotes"),
        ("key-bare", f"{{a:{GOOD}}}", "a key without quotes"),
        ("key-number", f"{{1:{GOOD}}}", "a key that is a number"),
        ("control", f'{{"a\n":{GOOD}}}', "a line feed in a name"),
        ("control-tab", f'{{"a\t":{GOOD}}}', "a tab in a name"),
        ("control-nul", f'{{"a\0":{GOOD}}}', "a NUL in a name"),
        ("escape-unknown", f'{{"\\x61":{GOOD}}}', "an escape that JSON does not have"),
        ("escape-short", f'{{"\\u61":{GOOD}}}', "an escape of two digits"),
        ("escape-not-hex", f'{{"\\u00g1":{GOOD}}}', "a digit that is none"),
        ("surrogate-high", f'{{"\\ud83d":{GOOD}}}', "half a pair of surrogates"),
        ("surrogate-low", f'{{"\\ude00":{GOOD}}}', "the other half"),
        ("surrogate-order", f'{{"\\ude00\\ud83d":{GOOD}}}', "a pair in the wrong order"),
        ("surrogate-two-high", f'{{"\\ud83d\\ud83d":{GOOD}}}', "two first halves"),
        ("string-open", '{"a', "a string without end"),
        ("deep", entry(more=',"x":' + "[" * 126 + "]" * 126), "more than 127 nested containers"),
        ("deep-far", entry(more=',"x":' + "[" * 5000 + "]" * 5000), "5000 nested containers"),
        ("unknown-field-number", entry(more=',"x":1e999'), "a number that no double holds"),
        ("unknown-field-nan", entry(more=',"x":NaN'), "NaN"),
        ("unknown-field-open", entry(more=',"x":['), "an array without end"),
        ("unknown-field-zero", entry(more=',"x":01'), "a zero in front"),
        ("unknown-field-surrogate", entry(more=',"x":"\\ud800"'), "half a pair, though nobody reads it"),
    ]:
        # Under strict the unknown field is named first, where what is wrong with it stands behind its name.
        strict = {"bom": None}.get(name)
        if name.startswith("unknown-field") or name.startswith("deep"):
            strict = "unknown-field"
        bad(f"json-{name}", header, "header-syntax", why, strict=strict)


def wrong_form():
    for name, header in [("array", "[]"), ("null", "null"), ("string", '"a"'), ("number", "4"), ("true", "true")]:
        bad(f"header-{name}", header, "header-syntax", "the header must be an object", body=0)
    for name, info in [("null", "null"), ("number", "1"), ("string", '"U8"'), ("true", "true"), ("empty", "{}")]:
        bad(f"tensor-{name}", f'{{"a":{info}}}', "header-syntax", "an entry needs three fields")
    for name, info in [("empty", "[]"), ("two", '["U8",[4]]'), ("four", '["U8",[4],[0,4],1]')]:
        bad(f"tensor-array-{name}", f'{{"a":{info}}}', "header-syntax", "an array must have three elements",
            strict="tensor-as-array")
    bad("no-dtype", '{"a":{"shape":[4],"data_offsets":[0,4]}}', "header-syntax", "no dtype")
    bad("no-shape", '{"a":{"dtype":"U8","data_offsets":[0,4]}}', "header-syntax", "no shape")
    bad("no-offsets", '{"a":{"dtype":"U8","shape":[4]}}', "header-syntax", "no data_offsets")
    for field, value in [("dtype", '"U8"'), ("shape", "[4]"), ("data_offsets", "[0,4]")]:
        bad(f"field-twice-{field.replace('_', '-')}", entry(more=f',"{field}":{value}'), "header-syntax",
            "a field that stands twice")
    for name, dtype in [("unknown", '"U9"'), ("lower", '"u8"'), ("hub-u3", '"U3"'), ("torch", '"float32"'),
                        ("space", '"U8 "'), ("empty", '""'), ("null", "null"), ("number", "8"), ("array", '["U8"]'),
                        ("object-empty", "{}"), ("object-value", '{"U8":1}'), ("object-two", '{"U8":null,"I8":null}')]:
        bad(f"dtype-{name}", entry(dtype=dtype), "header-syntax", "no dtype of the format")
    for name, shape in [("number", "4"), ("null", "null"), ("object", "{}"), ("string", '"[4]"'), ("negative", "[-4]"),
                        ("minus-zero", "[-0]"), ("float", "[4.0]"), ("exponent", "[4e0]"), ("zero-first", "[04]"),
                        ("plus", "[+4]"), ("text", '["4"]'), ("nested", "[[4]]"), ("true", "[true]"),
                        ("hex", "[0x4]"), ("too-large", "[18446744073709551616]")]:
        bad(f"shape-{name}", entry(shape=shape), "header-syntax", "no array of whole numbers")
    for name, offsets in [("one", "[0]"), ("three", "[0,4,8]"), ("none", "[]"), ("object", '{"0":0,"1":4}'),
                          ("float", "[0,4.0]"), ("negative", "[-1,3]"), ("text", '["0","4"]'), ("null", "null"),
                          ("too-large", "[0,18446744073709551616]")]:
        bad(f"offsets-{name}", entry(offsets=offsets), "header-syntax", "not two whole numbers")
    for name, metadata in [("array", "[]"), ("string", '"x"'), ("number", "1"), ("true", "true"),
                           ("value-number", '{"k":1}'), ("value-null", '{"k":null}'), ("value-object", '{"k":{}}'),
                           ("value-array", '{"k":["v"]}'), ("tensor", GOOD)]:
        bad(f"metadata-{name}", f'{{"__metadata__":{metadata},"a":{GOOD}}}', "header-syntax", "no map of strings")
    bad("metadata-twice", f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{GOOD}}}', "header-syntax", "metadata twice")


def wrong_places():
    pair = '{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}}'
    bad("hole-start", entry(shape="[3]", offsets="[1,4]"), "offsets", "a byte before the first tensor")
    bad("hole-between", pair.format(1, 0, 1, 2, 2, 4), "offsets", "a byte between two tensors")
    bad("hole-zero", entry(shape="[0]", offsets="[4,4]"), "offsets", "nothing, but not where the data starts")
    bad("overlap", pair.format(3, 0, 3, 2, 2, 4), "offsets", "two tensors share a byte")
    bad("overlap-same", pair.format(4, 0, 4, 4, 0, 4), "offsets", "two tensors share all bytes")
    bad("overlap-inside", pair.format(4, 0, 4, 2, 1, 3), "offsets", "one lies in the other")
    bad("reversed", entry(offsets="[4,0]"), "offsets", "the end before the start")
    bad("reversed-second", pair.format(2, 0, 2, 2, 2, 0), "offsets", "the end of the second before its start")
    bad("beyond", entry(shape="[8]", offsets="[0,8]"), "data-length", "more data than there is")
    bad("beyond-64-bits", entry(shape="[18446744073709551615]", offsets="[0,18446744073709551615]"), "overflow",
        "2^64-1 bytes are more than 2^64 bits", strict="large-number")
    bad("hole-far", entry(offsets="[18446744073709551611,18446744073709551615]"), "offsets", "at the end of 64 bits",
        strict="large-number")
    bad("size-less", entry(shape="[5]"), "tensor-size", "fewer bytes than the shape needs")
    bad("size-more", entry(shape="[3]"), "tensor-size", "more bytes than the shape needs")
    bad("size-dtype", entry(dtype='"F32"'), "tensor-size", "16 bytes are needed")
    bad("size-scalar", entry(shape="[]"), "tensor-size", "a scalar of one byte has four")
    bad("size-zero", entry(shape="[0,4]"), "tensor-size", "nothing has four bytes")
    bad("size-zero-missing", entry(offsets="[0,0]"), "tensor-size", "four elements have none", body=0)
    bad("overflow-product", entry(shape="[4294967296,4294967296]"), "overflow", "2^64 elements")
    bad("overflow-bits", entry(dtype='"F64"', shape="[288230376151711744]"), "overflow", "2^64 bits",
        strict="large-number")
    bad("overflow-before-zero", entry(shape="[9223372036854775808,4,0]", offsets="[0,0]"), "overflow",
        "the product overflows before the 0 comes", body=0, strict="large-number")
    for dtype, shape, end in [("F4", 3, 2), ("F6_E2M3", 1, 1), ("F6_E3M2", 6, 5)]:
        bad(f"subbyte-{dtype.lower()}", entry(f'"{dtype}"', f"[{shape}]", f"[0,{end}]"), "sub-byte",
            "does not end on a byte", body=end)
    bad("duplicate-hides-hole", f'{{"a":{GOOD},"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}', "data-length",
        "what the first one covered is covered no more", strict="duplicate-tensor")
    bad("duplicate-first-invalid", f'{{"a":{{"dtype":"U9","shape":[4],"data_offsets":[0,4]}},"a":{GOOD}}}',
        "header-syntax", "the first is read all the same")


def shard_file(tensors, start=0):
    """name -> number of bytes."""
    at, entries = 0, {}
    for name, size in tensors.items():
        entries[name] = tensor("U8", [size], at)
        at += size
    return frame(json.dumps(entries, separators=(",", ":")), data(at, start))


def add_set(name, files, why, verdict="ok", tensors=None, warnings=False):
    """A directory. `tensors`: name -> the shard in which a reader must find it."""
    directory = SETS / name
    directory.mkdir()
    for file, content in files.items():
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    case = {"directory": f"sets/{name}", "why": why, "compat": verdict, "strict": verdict}
    if verdict == "ok":
        case["shards"] = tensors
        case["warnings"] = warnings
    cases.append(case)


def sets():
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    one, two = shard_file({"a": 4, "b": 2}), shard_file({"c": 3}, 100)
    where = {"a": first, "b": first, "c": second}
    both = {first: one, second: two}
    index = "model.safetensors.index.json"

    def text(weights=where, **more):
        return json.dumps({"metadata": {"total_size": 9}, "weight_map": weights, **more})

    add_set("two-shards", {**both, index: text()}, "two shards and their index", tensors=where)
    add_set("no-index", both, "numbered shards need no index", tensors=where)
    add_set("no-metadata", {**both, index: json.dumps({"weight_map": where})}, "metadata is optional", tensors=where)
    add_set("odd-metadata", {**both, index: json.dumps({"metadata": {"total_size": "9 B", "x": [1]}, "weight_map": where})},
            "and free-form", tensors=where)
    add_set("unknown-keys", {**both, index: text(x={"y": [None]})}, "keys that nobody knows", tensors=where)
    add_set("other-names", {"x.safetensors": one, "y": two, index: text({"a": "x.safetensors", "b": "x.safetensors", "c": "y"})},
            "shards may have any name", tensors={"a": "x.safetensors", "b": "x.safetensors", "c": "y"})
    add_set("subdirectory", {"sub/" + first: one, second: two, index: text({"a": "sub/" + first, "b": "sub/" + first, "c": second})},
            "a shard in a subdirectory", tensors={"a": "sub/" + first, "b": "sub/" + first, "c": second})
    add_set("unlisted", {**both, index: text({"a": first, "c": second})}, "a tensor that the index does not list",
            tensors=where, warnings=True)
    add_set("weight-twice", {**both, index: f'{{"weight_map":{{"a":"{second}","a":"{first}","b":"{first}","c":"{second}"}}}}'},
            "the last of one name wins", tensors=where)
    add_set("single-first", {"model.safetensors": shard_file({"s": 1}), **both, index: text()},
            "a single file comes before an index", tensors={"s": "model.safetensors"})
    add_set("canonical-first", {"consolidated.safetensors": shard_file({"s": 1}), **both, index: text()},
            "the canonical name comes first", tensors=where)
    add_set("only-one", {"weights.safetensors": one}, "the only file there, whatever its name",
            tensors={"a": "weights.safetensors", "b": "weights.safetensors"})
    add_set("diffusion", {"diffusion_pytorch_model.safetensors": one, "other.safetensors": two},
            "the name that diffusers uses", tensors={"a": "diffusion_pytorch_model.safetensors", "b": "diffusion_pytorch_model.safetensors"})
    add_set("empty-directory", {"config.json": "{}"}, "nothing to load", "not-found")
    add_set("two-checkpoints", {"x.safetensors": one, "y.safetensors": two}, "which one?", "ambiguous")
    add_set("shard-missing", {first: one, index: text()}, "a shard is not there", "missing-shard")
    add_set("shard-missing-no-index", {second: two}, "one of two, and no index", "missing-shard")
    add_set("tensor-missing", {**both, index: text({**where, "d": second})}, "its shard does not hold it", "missing-tensor")
    add_set("tensor-elsewhere", {**both, index: text({**where, "c": first})}, "it stands in the other shard", "missing-tensor")
    twice = {first: one, second: shard_file({"c": 3, "a": 1})}
    add_set("tensor-twice", {**twice, index: text()}, "in both shards: the index decides", tensors=where, warnings=True)
    add_set("tensor-twice-second", {**twice, index: text({**where, "a": second})}, "in favour of the second",
            tensors={**where, "a": second}, warnings=True)
    add_set("tensor-twice-unlisted", {**twice, index: text({"b": first, "c": second})}, "in both shards and not in the index",
            "duplicate-tensor")
    add_set("tensor-twice-no-index", twice, "in both shards, and no index", "duplicate-tensor")
    add_set("shard-broken", {first: one, second: two[:-1], index: text()}, "a shard is cut short", "data-length")
    for name, shard in [("parent", "../two-shards/" + second), ("parent-inside", "sub/../../two-shards/" + second),
                        ("absolute", "/etc/passwd"), ("backslash", "..\\two-shards\\" + second), ("drive", "C:" + second),
                        ("empty", ""), ("nul", "a\0b")]:
        add_set(f"outside-{name}", {**both, index: text({**where, "c": shard})}, "a name that leads outside", "shard-name")
    for name, content in [("not-json", "{"), ("array", "[]"), ("no-map", '{"metadata":{}}'), ("map-array", '{"weight_map":[]}'),
                          ("map-empty", '{"weight_map":{}}'), ("shard-number", '{"weight_map":{"a":1}}'),
                          ("behind", '{"weight_map":{"a":"x"}} x'), ("comma", '{"weight_map":{"a":"x",}}')]:
        add_set(f"index-{name}", {**both, index: content}, "not an index", "index")
    staging = ".model.safetensors.Ab12cd.staging"
    new = {f"{staging}/{first}": shard_file({"n": 4}), second: shard_file({"o": 2}), first: one,
           "model.safetensors": shard_file({"s": 1}), f"{staging}/{index}": text({"n": first, "o": second})}
    journal = {"version": 1, "staging": staging, "files": [first, second, index], "remove": ["model.safetensors"]}
    add_set("replacement", {**new, ".model.safetensors.journal": json.dumps(journal)},
            "a replacement that was interrupted after one of three files", tensors={"n": first, "o": second})
    journal["remove"] = ["config.json"]
    add_set("replacement-hostile", {**new, "config.json": "{}", ".model.safetensors.journal": json.dumps(journal)},
            "a journal that would remove another file", "journal")


for directory in (FILES, SETS):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
for part in (right, departures, wrong_lengths, wrong_text, wrong_form, wrong_places, sets):
    part()
(HERE / "manifest.json").write_text(json.dumps({"version": 1, "cases": cases}, indent=1) + "\n")
print(f"{len(cases)} cases")
