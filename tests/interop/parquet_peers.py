"""Rows of Parquet files beside the rows that were written, and imports of Parquet files beside imports
of the same rows as lines of JSON. Usage: parquet_peers.py MIXTRAL PARQUET_ROWS"""
import itertools
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq

PROGRAM, ROWS = sys.argv[1:3]
rng = random.Random(7)
WORDS = ["alpha", "beta", "", "line\nbreak", "quote\"d", "back\\slash", "naïve", "日本語", "\t", "🙂 smile", "x" * 300]

TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int32())])
FIELDS = {
    "text": pa.string(), "maybe": pa.string(), "large": pa.large_string(), "i8": pa.int8(), "i16": pa.int16(),
    "i32": pa.int32(), "i64": pa.int64(), "u8": pa.uint8(), "u16": pa.uint16(), "u32": pa.uint32(),
    "u64": pa.uint64(), "f32": pa.float32(), "f64": pa.float64(), "flag": pa.bool_(), "list": pa.list_(pa.int64()),
    "texts": pa.list_(pa.string()), "deep": pa.list_(pa.list_(pa.list_(pa.string()))), "turns": pa.list_(TURN),
    "info": pa.struct([("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.int32()), ("d", pa.list_(pa.string()))])))]),
    "kind": pa.dictionary(pa.int32(), pa.string()), "nothing": pa.string(),
}
NEVER_NULL = {"text"}


def value(kind, depth=0):
    """A random value of a type, null at times."""
    if depth and rng.random() < 0.12:
        return None
    if pa.types.is_dictionary(kind):
        return rng.choice(["red", "green", "blue"])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(4)))
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        low = -2 ** (kind.bit_width - 1) if signed else 0
        high = 2 ** (kind.bit_width - signed) - 1
        return rng.choice([low, high, 0, 1, rng.randint(low, high)])
    if pa.types.is_floating(kind):
        number = rng.choice([0.0, -1.5, 1e30, 1e-30, math.nan, math.inf, rng.random()])
        return struct.unpack("f", struct.pack("f", number))[0] if kind.bit_width == 32 else number
    if pa.types.is_list(kind):
        return [value(kind.value_type, depth + 1) for _ in range(rng.choice([0, 0, 1, 2, 5]))]
    return {field.name: value(field.type, depth + 1) for field in kind}


def table(count, names=FIELDS):
    columns = {}
    for name in names:
        nulls = 0 if name in NEVER_NULL else 1 if name == "nothing" else 0.15
        columns[name] = [None if rng.random() < nulls else value(FIELDS[name]) for _ in range(count)]
    schema = pa.schema([pa.field(name, FIELDS[name], nullable=name not in NEVER_NULL) for name in names])
    return pa.table(columns, schema=schema)


def same(kind, found, expected):
    if found is None or expected is None or isinstance(expected, float) and not math.isfinite(expected):
        return found is None and (expected is None or isinstance(expected, float) and not math.isfinite(expected))
    if pa.types.is_floating(kind):
        pack = "f" if kind.bit_width == 32 else "d"
        return struct.pack(pack, found) == struct.pack(pack, expected)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(found) == len(expected) and all(same(kind.value_type, a, b) for a, b in zip(found, expected))
    if pa.types.is_struct(kind):
        return list(found) == list(expected) and all(same(f.type, found[f.name], expected[f.name]) for f in kind)
    return found == expected and type(found) is type(expected)


checks = failures = 0


def check(ok, what):
    global checks, failures
    checks += 1
    if not ok:
        failures += 1
        print("WRONG", what)


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, timeout=120)


def compare(path, expected, what):
    result = run(ROWS, path)
    lines = result.stdout.decode().split("\n")[:-1]
    if result.returncode != 0 or len(lines) != expected.num_rows:
        return check(False, f"{what}: {len(lines)} rows of {expected.num_rows}: {result.stderr.decode()[:300]}")
    kinds = {field.name: field.type for field in expected.schema}
    for i, (line, row) in enumerate(zip(lines, expected.to_pylist())):
        found = json.loads(line)
        for name, kind in kinds.items():
            if name not in found or not same(kind, found[name], row[name]):
                return check(False, f"{what}: row {i + 1}, {name}: {found.get(name)!r} for {row[name]!r}")
    check(True, what)


def pyarrow_files(work):
    path = work / "a.parquet"
    small = table(400)
    for codec, version, dictionary, groups, nested in itertools.product(
            ["NONE", "SNAPPY", "GZIP", "ZSTD"], ["1.0", "2.0"], [True, False], [400, 33], [True, False]):
        options = dict(compression=codec, data_page_version=version, use_dictionary=dictionary, row_group_size=groups,
                       use_compliant_nested_type=nested, data_page_size=512, write_batch_size=16,
                       write_page_checksum=nested, version="2.6" if nested else "1.0")
        if not nested:  # the first version of the format has no unsigned 32-bit numbers
            written = small.drop_columns(["u32"])
        else:
            written = small
        pq.write_table(written, path, **options)
        compare(path, written, f"pyarrow {options}")
    encodings = {
        "DELTA_BINARY_PACKED": ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"],
        "DELTA_LENGTH_BYTE_ARRAY": ["text", "maybe", "large", "nothing"],
        "DELTA_BYTE_ARRAY": ["text", "maybe", "large", "nothing"],
        "BYTE_STREAM_SPLIT": ["f32", "f64", "i32", "i64"],
        "RLE": ["flag"],
        "PLAIN": ["flag", "text", "i64"],
    }
    for (encoding, names), codec, version in itertools.product(encodings.items(), ["NONE", "ZSTD"], ["1.0", "2.0"]):
        for count in (0, 1, 2, 33, 700):
            written = table(count, names)
            pq.write_table(written, path, compression=codec, use_dictionary=False, data_page_version=version,
                           column_encoding={name: encoding for name in names}, data_page_size=700, write_batch_size=50)
            compare(path, written, f"pyarrow {encoding} {codec} {version} {count} rows")
    large = pa.table({"text": [rng.choice("abc") * n for n in (0, 1, 5_000_000, 70_000, 20_000_000)]})
    for codec in ("NONE", "SNAPPY", "GZIP", "ZSTD"):
        pq.write_table(large, path, compression=codec)
        compare(path, large, f"pyarrow large texts {codec}")
    many = pa.table({"text": [f"row {i}" for i in range(100_000)], "n": list(range(100_000)),
                     "l": [[i] * (i % 3) for i in range(100_000)]})
    pq.write_table(many, path, row_group_size=30_000)
    compare(path, many, "pyarrow 100,000 rows")


def other_files(work):
    path = work / "b.parquet"
    names = [name for name in FIELDS if name != "kind"]
    written = table(400, names)
    frame = polars.from_arrow(written)
    for codec in ("uncompressed", "snappy", "gzip", "zstd"):
        frame.write_parquet(path, compression=codec, row_group_size=150, data_page_size=1000)
        compare(path, written, f"Polars {codec}")
    for codec, version in itertools.product(("uncompressed", "snappy", "gzip", "zstd"), ("V1", "V2")):
        duckdb.sql("select * from written").write_parquet(str(path), compression=codec) if version == "V1" else duckdb.sql(
            f"copy (select * from written) to '{path}' (format parquet, compression {codec}, parquet_version v2)")
        compare(path, written, f"DuckDB {codec} {version}")


def sentence():
    return " ".join(rng.choice(WORDS[:2] + WORDS[3:9]) for _ in range(rng.randint(1, 6))) + " end"


def turns(first, second, keys):
    return [dict(zip(keys, (role, sentence()))) for _ in range(rng.randint(1, 3)) for role in (first, second)]


def forms():
    """Rows of each published form, beside columns that no form has."""
    for name, row in {
        "sharegpt": lambda i: {"id": i, "conversations": turns("human", "gpt", ("from", "value")), "system": rng.choice([None, "S"])},
        "alpaca": lambda i: {"instruction": sentence(), "input": rng.choice(["", sentence()]), "output": sentence()},
        "ultrafeedback": lambda i: {"prompt": f"P{i}", "prompt_id": str(i), "score_chosen": 8.5, "score_rejected": 2.0, "messages": None if i % 2 else [],
                                    "chosen": [{"role": "user", "content": f"P{i}"}, {"role": "assistant", "content": sentence() + "!"}],
                                    "rejected": [{"role": "user", "content": f"P{i}"}, {"role": "assistant", "content": sentence()}]},
        "hh": lambda i: {"chosen": f"\n\nHuman: {i}\n\nAssistant: yes", "rejected": f"\n\nHuman: {i}\n\nAssistant: no"},
        "trl": lambda i: {"messages": turns("user", "assistant", ("role", "content")), "source": "s"},
    }.items():
        yield name, name, [row(i) for i in range(300)]
    yield "trl", "text", [{"text": sentence(), "meta": {"n": i}} for i in range(300)]
    yield "trl", "pairs of text", [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(300)]
    yield "trl", "completions", [{"prompt": f"p{i}", "completion": sentence()} for i in range(300)]


def imports(work):
    for form, what, rows in forms():
        (work / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = work / "folder"
        folder.mkdir(exist_ok=True)
        for part, begin in enumerate((0, 120)):
            pq.write_table(pa.Table.from_pylist(rows[begin:begin + 120 if begin == 0 else None]), folder / f"train-{part}.parquet",
                           row_group_size=50)
        expected = run(PROGRAM, "data", "import", "--from", form, work / "x.jsonl", "--out", work / "o1", "--overwrite")
        for origin in ("parquet", form):
            found = run(PROGRAM, "data", "import", "--from", origin, folder, "--out", work / "o2", "--overwrite")
            same_files = found.returncode == expected.returncode == 0 and all(
                (work / "o1" / f).read_bytes() == (work / "o2" / f).read_bytes() for f in ("train.jsonl", "val.jsonl", "test.jsonl"))
            check(same_files, f"import of {what} from {origin}: {expected.stderr.decode()}{found.stderr.decode()}")
        advice = run(PROGRAM, "data", "check", "--data", folder / "train-0.parquet").stderr.decode()
        check(f"it looks like {form}; " in advice and "data import --from parquet" in advice, f"data check of {what}: {advice}")


def refusals(work):
    path = work / "c.parquet"

    def refused(words, what, *more):
        result = run(PROGRAM, "data", "import", "--from", "parquet", path, "--out", work / "o3", "--overwrite", *more)
        said = result.stderr.decode()
        check(result.returncode in (1, 2) and all(word in said for word in words), f"{what}: {result.returncode} {said}")

    def write(column, kind, values, **options):
        pq.write_table(pa.table({"text": ["t"] * len(values), column: pa.array(values, kind)}), path, **options)

    import decimal
    write("messages", pa.map_(pa.string(), pa.string()), [[("a", "b")]])
    refused(["messages", "a map"], "map")
    write("messages", pa.decimal128(10, 2), [decimal.Decimal("1.25")])
    refused(["messages", "decimal"], "decimal")
    write("messages", pa.timestamp("ns"), [1], use_deprecated_int96_timestamps=True)
    refused(["messages", "INT96"], "INT96")
    for codec in ("BROTLI", "LZ4"):
        write("n", pa.int64(), [1], compression=codec)
        refused(["column text", "LZ4" if codec == "LZ4" else "Brotli"], codec)
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), path)
    refused(["question, answer", "columns"], "unknown columns")
    result = run(PROGRAM, "data", "import", "--from", "parquet", path, "--columns", "prompt=question,completion=answer", "--out", work / "o4",
                 "--val", "0", "--test", "0")
    check((work / "o4/train.jsonl").exists() and json.loads((work / "o4/train.jsonl").read_text()) == {"prompt": "q", "completion": "a"},
          f"named columns: {result.stderr.decode()}")
    # What no form has a use for may be of any kind.
    write("when", pa.timestamp("ns"), [1] * 50, use_deprecated_int96_timestamps=True)
    result = run(PROGRAM, "data", "import", "--from", "parquet", path, "--out", work / "o5")
    check(result.returncode == 0, f"INT96 that is not used: {result.stderr.decode()}")

    written = table(60)
    for codec, version in itertools.product(("NONE", "SNAPPY", "ZSTD"), ("1.0", "2.0")):
        pq.write_table(written, path, compression=codec, data_page_version=version, write_page_checksum=True, data_page_size=300)
        whole = path.read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little")
        for _ in range(150):
            damaged = bytearray(whole)
            kind = rng.random()
            if kind < 0.3:
                damaged = damaged[:rng.randrange(len(damaged))]
            elif kind < 0.6:  # in the footer
                damaged[len(whole) - 8 - rng.randrange(1, footer)] ^= 1 << rng.randrange(8)
            else:
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            result = run(ROWS, path)
            check(result.returncode in (0, 1), f"damaged {codec} {version}: {result.returncode} {result.stderr.decode()[:200]}")
            if kind < 0.3:
                check(result.returncode == 1 and b"c.parquet: " in result.stderr, f"truncated {codec} {version}")


with tempfile.TemporaryDirectory() as directory:
    for part in (pyarrow_files, other_files, imports, refusals):
        before = checks
        part(pathlib.Path(directory))
        print(f"{part.__name__}: {checks - before} checks", flush=True)
print(f"pyarrow {pa.__version__}, Polars {polars.__version__}, DuckDB {duckdb.__version__}: "
      f"{checks - failures} of {checks} checks passed")
sys.exit(failures != 0)
