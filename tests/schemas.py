"""JSON schemas of many kinds, whose texts are short."""

from typing import Any

Schema = dict[str, Any]

SHORT: Schema = {"type": "string", "maxLength": 8}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}


def closed(**properties: Schema) -> Schema:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def optional(number: int) -> Schema:
    """Return the schema of an object with some of so many properties."""
    properties = {f"p{i}": {"const": i} for i in range(number)}
    return {"type": "object", "properties": properties}


def several(items: Schema, low: int = 0, high: int = 3) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


SCHEMAS: dict[str, Schema] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "digit": DIGIT,
    "negative": {"type": "integer", "minimum": -20, "maximum": -3},
    "exclusive": {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 11},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "short string": SHORT,
    "exact length": {"type": "string", "minLength": 3, "maxLength": 3},
    "empty string": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]{2,5}$"},
    "pattern of digits": {"type": "string", "pattern": "^\\d{3}-\\d{2}$"},
    "pattern of choices": {"type": "string", "pattern": "^(red|green|blue) (sky|sea)$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "uuid": {"type": "string", "format": "uuid"},
    "address": {"type": "string", "format": "ipv4"},
    "enum": {"enum": ["yes", "no", "maybe"]},
    "mixed enum": {"enum": ["a", 1, None, True, {"b": [2, "c"]}]},
    "Unicode enum": {"enum": ["été", "日本語", "🦙 llama", "\u2028", 'quote " \\ back']},
    "Unicode keys": closed(**{"größe": DIGIT, "名前": SHORT, "🦙": {"type": "boolean"}}),
    "const": {"const": {"version": 1, "kind": "a longer text that has no choice at all"}},
    "const string": {"const": "one\ntwo\ttab"},
    "empty object": closed(),
    "one property": closed(name=SHORT),
    "person": closed(name=SHORT, age=DIGIT, married={"type": "boolean"}),
    "optional properties": {
        "type": "object",
        "properties": {"a": DIGIT, "b": DIGIT, "c": DIGIT},
        "required": ["b"],
        "additionalProperties": False,
    },
    "nested": closed(a=closed(b=closed(c=closed(d=DIGIT)))),
    "list": several(DIGIT),
    "list of two": several(DIGIT, 2, 2),
    "empty list": several(DIGIT, 0, 0),
    "list of strings": several(SHORT, 1, 2),
    "list of objects": several(closed(x=DIGIT, y=DIGIT), 1, 2),
    "list of lists": several(several(DIGIT, 0, 2), 1, 2),
    "tuple": {
        "type": "array",
        "prefixItems": [DIGIT, SHORT, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "union of types": {"type": ["boolean", "null"]},
    "nullable": closed(a={"anyOf": [DIGIT, {"type": "null"}]}),
    "union": {"anyOf": [DIGIT, several(DIGIT, 1, 1), closed(a=DIGIT)]},
    "union of objects": {
        "anyOf": [
            closed(kind={"const": "circle"}, r=DIGIT),
            closed(kind={"const": "box"}, w=DIGIT, h=DIGIT),
        ]
    },
    "all of": {"allOf": [DIGIT, {"maximum": 4}]},
    "definitions": {
        "$defs": {"point": closed(x=DIGIT, y=DIGIT)},
        **closed(here={"$ref": "#/$defs/point"}, there={"$ref": "#/$defs/point"}),
    },
    "tree": {
        "$defs": {
            "node": closed(v=DIGIT, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]})
        },
        "$ref": "#/$defs/node",
    },
    "labels": closed(label={"enum": ["bug", "feature"]}, urgent={"type": "boolean"}),
    "titles": {
        "title": "T",
        "description": "D",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **closed(a=DIGIT),
    },
    "answer": closed(reason=SHORT, answer={"enum": ["A", "B", "C", "D"]}),
    "escapes": {"type": "string", "pattern": '^"\\\\[a-c]"$'},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 30, "multipleOf": 5},
    "long key": closed(a_key_that_is_rather_long_for_a_key=DIGIT),
    "many": closed(**{f"key_{i}": {"type": "boolean"} for i in range(6)}),
    "one key of a pattern": {
        "type": "object",
        "patternProperties": {"^[ab]$": DIGIT},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "a required key and one of a pattern": {
        "type": "object",
        "properties": {"a": DIGIT},
        "required": ["a"],
        "patternProperties": {"^[a-c]$": DIGIT},
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 2,
    },
    "number of required keys": {
        "allOf": [{"minProperties": 2, "maxProperties": 2}, closed(a=DIGIT, b=DIGIT)]
    },
    "keywords as values": {
        "default": {"minProperties": 3},
        **closed(minProperties={"const": {"minProperties": 3}}),
    },
    "white space": {
        "x-guidance": {"whitespace_flexible": True, "whitespace_pattern": " ?"},
        **several(DIGIT),
    },
}
