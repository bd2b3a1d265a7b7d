"""Gives schemas, grammars and regular expressions, with texts that fit and texts that nearly do, to the program,
llguidance, xgrammar, jsonschema and Python's re, and compares who accepts what (run by the script `constrain` beside
this file). Exit 1 where the program accepts a value that is not valid, or differs from both peers on a grammar or
from re on an expression."""
import collections
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import jsonschema
import llguidance
import xgrammar

OBJECT = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
          "tags": {"type": "array", "items": {"enum": ["a", "nö", "\"q\""]}, "maxItems": 3}}, "required": ["name", "tags"], "additionalProperties": False}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "kids": {"type": "array",
        "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}, "required": ["v", "kids"], "additionalProperties": False}}}
SCHEMAS = [  # a schema and values
    (OBJECT, [{"name": "Ann", "age": 7, "tags": []}, {"name": "Ünï", "tags": ["a", "nö"]}, {"name": "", "age": 150, "tags": ["\"q\""]}]),
    (TREE, [{"v": 1, "kids": []}, {"v": -3, "kids": [{"v": 2, "kids": []}, {"v": 0, "kids": [{"v": 9, "kids": []}]}]}]),
    ({"type": "integer", "minimum": -20, "maximum": 305}, [0, -20, 305, 99, -7]),
    ({"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25}, [0, -1.5, 2.2, 1.75, -0.25]),
    ({"type": "integer", "exclusiveMinimum": 9}, [10, 11, 123456]),
    ({"type": "string", "minLength": 2, "maxLength": 5}, ["ab", "é€😀", "a\nb\"c", "\\\\"]),
    ({"type": "string", "pattern": "^[a-c]{2,4}(-[0-9]+)?$"}, ["ab", "abca-123", "cc-0"]),
    ({"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"]),
    ({"type": "string", "format": "ipv4"}, ["192.168.0.1", "255.255.255.255"]),
    ({"enum": [1, None, "x", True, 2.5]}, [1, None, "x", True, 2.5]),
    ({"const": {"a": [1, "b"]}}, [{"a": [1, "b"]}]),
    ({"type": ["boolean", "null"]}, [True, False, None]),
    ({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "array", "items": {"type": "null"}, "minItems": 1}]}, ["a", "", [None], [None, None]]),
    ({"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": {"type": "integer"}, "minItems": 1}, [[True], [False, None], [True, None, 1, 2]]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1}, {"a": 1, "é\"": -2}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}, "required": ["a"]}, [{"a": 1}, {"a": 1, "b": "x"}]),
    ({"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False}, [{}, {"n_a": 1}, {"n_": 2, "n_b": 3}]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"a": {"minimum": 5}}}]}, [{"a": 5}, {"a": 70}]),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "x"}}, "required": ["k"]},
                {"type": "object", "properties": {"k": {"const": "y"}, "n": {"type": "null"}}, "required": ["k", "n"]}]}, [{"k": "x"}, {"k": "y", "n": None}]),
    ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "object", "properties": {"c": {"type": "array", "items": {"type": "number"}}}, "required": ["c"]}}},
     [{"a": "x", "b": {"c": [1.5, 2, -3e5]}}, {"b": {"c": []}}, {}]),
    ({}, [1, "a", None, [], {}, {"a": [True, {"b": 1.5}]}]),
]
GRAMMARS = [  # GBNF and texts
    ('root ::= ("yes" | "nö") " " [0-9]{2} [à-ü]\n', ["yes 12é", "nö 00ü"]),
    ('root ::= expr\nexpr ::= term ([-+] term)*\nterm ::= [0-9]+ | "(" expr ")"\n', ["1+2", "(1-2)+33", "((4))"]),
    ('root ::= item ("," item)* # list\nitem ::= "\\"" [^"\\\\]* "\\"" | [0-9]{1,3}\n', ['"a",1', '12', '"é😀"']),
    ('root ::= (\n  "a"\n  | "b"+\n)? [^a-c]\n', ["ax", "bbé", "😀"]),
    ('root ::= "\\u00e9\\x41\\n" .{0,2}\n', ["éA\nxy", "éA\n"]),
    ('root ::= s\ns ::= "a" s "b" | ""\n', ["", "ab", "aaabbb"]),
]
EXPRESSIONS = [
    ("(ab|c){2,3}[.!?]", ["abab.", "ccc!"]), ("[a-f0-9]{4}(-[a-f0-9]{2})*", ["beef", "0000-ff-00"]), (r"\d{3}-\d{4}|\(\d\)", ["123-4567", "(1)"]),
    ("[^a-c]+x?", ["dé😀x", "zzz"]), ("(a?){3}(b*)*c", ["c", "aabbbc"]), ("[à-ü]+|€{2}", ["éü", "€€"]), (r"[\w.]+@[\w.]+\.(com|org)", ["a.b@c.org", "x@y.com"]),
    ("(?:red|green|blue)(?:, (?:red|green|blue)){0,2}", ["red", "red, blue, green"]), (r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", ["0", "-12.5e+3"]),
]


def mutations(text, rng, alphabet):
    """Texts that differ in a place or two."""
    for _ in range(12):
        out = list(text)
        for _ in range(rng.choice([1, 1, 2])):
            place = rng.randrange(len(out) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                out.insert(place, rng.choice(alphabet))
            elif kind == 1 and place < len(out):
                del out[place]
            elif kind == 2 and place < len(out):
                out[place] = rng.choice(alphabet)
            elif place < len(out):
                out[place:place] = out[place:place + rng.randrange(1, 4)]
        yield "".join(out)


def values_near(value, rng):
    """Values that differ in a part."""
    if isinstance(value, bool) or value is None:
        yield from (None, True, 0, "x")
    elif isinstance(value, (int, float)):
        yield from (value + 1, value - 1, value * 10, -value, value + 0.5, str(value))
    elif isinstance(value, str):
        yield from (value + "a", value[1:], value + value, value + "é", None, [value])
    elif isinstance(value, list):
        yield from (value + value, value[1:], value + [None], {})
        for i, item in enumerate(value):
            for other in values_near(item, rng):
                yield value[:i] + [other] + value[i + 1:]
    else:
        yield from ({**value, "zz": 1}, dict(reversed(value.items())), [])
        for key, item in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in values_near(item, rng):
                yield {**value, key: other}


def cases():
    rng = random.Random(1)
    for schema, values in SCHEMAS:
        texts = []
        for value in values:
            text = json.dumps(value, ensure_ascii=False)
            texts += [text, json.dumps(value), json.dumps(value, separators=(",", ":"), ensure_ascii=False), json.dumps(value, indent=2, ensure_ascii=False)]
            texts += [json.dumps(other, ensure_ascii=False) for other in values_near(value, rng)]
            texts += mutations(text, rng, "\"{}[],:0a1 né\\")
        yield {"kind": "schema", "grammar": schema, "texts": list(dict.fromkeys(texts))}
    for kind, entries in (("gbnf", GRAMMARS), ("regex", EXPRESSIONS)):
        for grammar, good in entries:
            texts = [t for g in good for t in [g, *mutations(g, rng, "ab1é(),.x\"")]]
            yield {"kind": kind, "grammar": grammar, "texts": list(dict.fromkeys(texts))}


class Llguidance:
    def __init__(self):
        self.tokenizer = llguidance.LLTokenizer("byte")

    def accepted(self, case):
        maker = llguidance.LLMatcher
        if case["kind"] == "schema":
            grammar = maker.grammar_from_json_schema(json.dumps(case["grammar"]))
        elif case["kind"] == "regex":
            grammar = maker.grammar_from_regex(case["grammar"])
        else:
            grammar = llguidance.grammar_from("gbnf", case["grammar"])
        verdicts = []
        for text in case["texts"]:
            matcher = maker(self.tokenizer, grammar)
            if matcher.get_error():
                raise ValueError(matcher.get_error())
            tokens = self.tokenizer.tokenize_bytes(text.encode())
            verdicts.append(matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting())
        return verdicts


class Xgrammar:
    def __init__(self):
        vocabulary = [bytes([i]) for i in range(256)] + [b"</s>"]
        self.compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[256]))

    def accepted(self, case):
        if case["kind"] == "schema":
            compiled = self.compiler.compile_json_schema(json.dumps(case["grammar"]), strict_mode=False)
        elif case["kind"] == "regex":
            compiled = self.compiler.compile_regex(case["grammar"])
        else:
            compiled = self.compiler.compile_grammar(case["grammar"])
        verdicts = []
        for text in case["texts"]:
            matcher = xgrammar.GrammarMatcher(compiled)
            verdicts.append((text == "" or matcher.accept_string(text)) and matcher.accept_token(256))
        return verdicts


def strict(text):
    """The value, where `text` is JSON with no name twice."""
    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)
    return json.loads(text, object_pairs_hook=unique)


def truth(case, text):
    """Whether the text fits by the reference library; None where there is none."""
    if case["kind"] == "regex":
        return re.fullmatch(case["grammar"], text) is not None
    if case["kind"] == "gbnf":
        return None
    try:
        return jsonschema.Draft202012Validator(case["grammar"], format_checker=jsonschema.FormatChecker()).is_valid(strict(text))
    except ValueError:
        return False


def main():
    program, tokenizer = sys.argv[1:3]
    everything = list(cases())
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "cases.jsonl"
        file.write_text("\n".join(json.dumps(c) for c in everything))
        lines = subprocess.run([program, tokenizer, str(file), "--verdicts"], capture_output=True, text=True, check=True).stdout.splitlines()
    print(lines[-1])
    peers = {"llguidance": Llguidance(), "xgrammar": Xgrammar()}
    counts, faults = collections.Counter(), 0
    for case, line in zip(everything, lines):
        ours = json.loads(line)
        name = json.dumps(case["grammar"], ensure_ascii=False)[:70]
        if "error" in ours:
            print(f"REFUSED  {name}: {ours['error']}")
            faults += 1
            continue
        theirs = {}
        for peer, library in peers.items():
            try:
                theirs[peer] = library.accepted(case)
            except Exception as error:
                counts[f"grammars that {peer} refuses"] += 1
                print(f"{peer} refuses {name}: {str(error)[:100]}")
        for i, text in enumerate(case["texts"]):
            mine, right = ours["accepted"][i], truth(case, text)
            counts["texts"] += 1
            for peer, verdicts in theirs.items():
                counts[f"as {peer}"] += bool(verdicts[i]) == mine
            others = [bool(v[i]) for v in theirs.values()]
            if right is not None:
                counts["as jsonschema or re"] += right == mine
                wrong = mine and not right or (case["kind"] == "regex" and mine != right)
                if mine and right is False and case["kind"] == "schema":
                    try:  # a name twice is no fault of the grammar
                        strict(text)
                    except ValueError as error:
                        wrong = "twice" not in str(error)
            else:
                wrong = len(others) == 2 and mine not in others
            if wrong:
                faults += 1
                print(f"WRONG  {name}: {'accepts' if mine else 'refuses'} {text!r}; library {right}, peers {others}")
            elif right and not mine and len(others) == 2 and all(others):
                counts["valid texts that only we refuse"] += 1
                print(f"narrower  {name}: {text!r}")
    print("; ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"{faults} faults")
    return 1 if faults else 0


sys.exit(main())
