"""Trains kinds of tokenizer.json with Hugging Face's tokenizers, and compares encodings and decodings of random
texts with those of the program (run by the script `tokenizers` beside this file)."""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = 3000
WORDS = """the cat sat on a mat and didn't move; it's 1234567 o'clock, I'LL say: HELLO World don't
naïve café Straße ΑΣ übung мир привет 世界 こんにちは שלום مرحبا हिन्दी 🙂 👩‍👩‍👧 e\u0301 ﬁ ① ½ x² <s> </s> [INST] [/INST]
<|im_start|> <|im_end|> word words www.example.org/path?x=1&y=2 {"a": [1, 2]} foo_bar fooBar FOO \u00a0 \u3000 \u200d \u180e""".split(" ")
GAPS = [" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "", " \n ", "\u00a0", "\u3000"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def text(rng):
    return "".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(rng.randrange(0, 12)))


def byte_level(pattern, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        split + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def space_symbol(pre_tokenizer, **options):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options))
    if pre_tokenizer is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"] + [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, {"special_tokens": tokens}


def normalized(*steps):
    tokenizer, options = byte_level(None)
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return tokenizer, options


def flagged():
    tokenizer, options = space_symbol(pre_tokenizers.Metaspace(prepend_scheme="always"))
    return tokenizer, options, [AddedToken("word", single_word=True, normalized=False),
                                AddedToken("<|im_start|>", lstrip=True, normalized=False),
                                AddedToken("<|im_end|>", rstrip=True, normalized=False),
                                AddedToken("foo_bar", normalized=True)]


KINDS = {
    "GPT-2": lambda: byte_level(None),
    "Llama 3": lambda: byte_level(LLAMA3, ignore_merges=True),
    "Tekken": lambda: byte_level(TEKKEN),
    "Qwen": lambda: byte_level(QWEN),
    "Llama 2, prepended": lambda: space_symbol(None),
    "Metaspace, first": lambda: space_symbol(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "Metaspace, always": lambda: space_symbol(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "Metaspace, never": lambda: space_symbol(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "added tokens with flags": flagged,
    "NFC": lambda: normalized(normalizers.NFC()),
    "NFKC, lower case": lambda: normalized(normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()),
    "NFD, no accents": lambda: normalized(normalizers.NFD(), normalizers.StripAccents()),
    "Whitespace, digits": lambda: (lambda made: (setattr(made[0], "pre_tokenizer", pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])), made)[1])(
            space_symbol(pre_tokenizers.Whitespace())),
    "Punctuation": lambda: (lambda made: (setattr(made[0], "pre_tokenizer", pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous")])), made)[1])(
            space_symbol(pre_tokenizers.WhitespaceSplit())),
}


def run(program, command, tokenizer, rows):
    done = subprocess.run([program, "tokenizer", command, "--tokenizer", tokenizer, "--jsonl"], check=True,
                          input="".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
                          capture_output=True)
    return [json.loads(line) for line in done.stdout.split(b"\n") if line]


def compare(program, kind, folder):
    tokenizer, options, *added = KINDS[kind]()
    rng = random.Random(kind)
    tokenizer.train_from_iterator((text(rng) for _ in range(2000)),
                                  trainers.BpeTrainer(vocab_size=900, show_progress=False, **options))
    for token in added[0] if added else []:
        tokenizer.add_tokens([token])
    if not added:
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.add_tokens([AddedToken("<|im_start|>", normalized=False)])
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    texts = [text(rng) for _ in range(TEXTS)]
    want = [tokenizer.encode(t).ids for t in texts]
    got = [row["ids"] for row in run(program, "encode", file, [{"text": t} for t in texts])]
    wrong = [(t, g, w) for t, g, w in zip(texts, got, want) if g != w]
    decoded = run(program, "decode", file, [{"ids": ids} for ids in want])
    # Where bytes are no UTF-8 the library's count of U+FFFD is its own.
    wrong_decoded = [(ids, row["text"], tokenizer.decode(ids)) for ids, row in zip(want, decoded)
                     if "bytes" not in row and row["text"] != tokenizer.decode(ids)]
    print(f"{kind:26} {TEXTS} texts: {len(wrong)} encodings and {len(wrong_decoded)} decodings differ")
    for difference in (wrong + wrong_decoded)[:2]:
        print("   ", *map(repr, difference), sep="\n      ")
    return not wrong and not wrong_decoded


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(program, kind, pathlib.Path(folder)) for kind in KINDS]
    print(f"{sum(results)} of {len(results)} kinds agree")
    sys.exit(0 if all(results) else 1)


main()
