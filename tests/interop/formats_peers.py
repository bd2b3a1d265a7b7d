"""Converts and quantizes a random model with the program, and compares what comes out with the programs that read it
(run by the script `formats` beside this file)."""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

PROGRAM, PEERS = sys.argv[1], sys.argv[2:]
WORK = pathlib.Path(tempfile.mkdtemp(prefix="formats-"))
SHAPE = dict(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
             num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2)
PROMPT = [1, 17, 300, 42, 7, 99, 256, 31]
failures = 0


def report(what, holds, detail=""):
    global failures
    failures += not holds
    print(f"{'ok   ' if holds else 'WRONG'} {what}{': ' + detail if detail else ''}", flush=True)


def mixtral(*args):
    done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"mixtral {' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def make_model():
    """A directory of Hugging Face's form with random weights and a tokenizer trained on made-up words."""
    rng = np.random.default_rng(5)
    s = SHAPE
    d, f, kv = s["hidden_size"], s["intermediate_size"], s["hidden_size"] // 2
    tensors = {"model.embed_tokens.weight": (s["vocab_size"], d), "model.norm.weight": (d,),
               "lm_head.weight": (s["vocab_size"], d)}
    for layer in range(s["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        tensors |= {p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,),
                    p + "self_attn.q_proj.weight": (d, d), p + "self_attn.k_proj.weight": (kv, d),
                    p + "self_attn.v_proj.weight": (kv, d), p + "self_attn.o_proj.weight": (d, d),
                    p + "block_sparse_moe.gate.weight": (s["num_local_experts"], d)}
        for e in range(s["num_local_experts"]):
            q = f"{p}block_sparse_moe.experts.{e}."
            tensors |= {q + "w1.weight": (f, d), q + "w3.weight": (f, d), q + "w2.weight": (d, f)}
    values = {}
    for name, shape in tensors.items():
        x = rng.standard_normal(shape, np.float32)
        values[name] = (1 + 0.1 * x if len(shape) == 1 else x / np.sqrt(shape[1])).astype(np.float32)
        if "block_sparse_moe.gate" in name:  # routers that are sure, as trained ones are: a rounding error changes no choice
            values[name] *= 4
    folder = WORK / "model"
    folder.mkdir()
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(
        s | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "max_position_embeddings": 256,
             "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": False,
             "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "sliding_window": None}))
    words = ["".join(rng.choice(list("abcdefghij"), 4)) for _ in range(300)]
    text = "\n".join(" ".join(rng.choice(words, 12)) for _ in range(2000))
    (WORK / "text.txt").write_text(text)
    mixtral("tokenizer", "train", "--data", WORK / "text.txt", "--vocab-size", s["vocab_size"], "--out", folder)
    return folder, values


def interleaved(x, heads):
    """Rows of each head in the order in which rotary pairs are neighbours."""
    rows, columns = x.shape
    return x.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def expected(values, name):
    """What a GGUF tensor of that name holds, in full precision."""
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}
    if name in top:
        return values[top[name]]
    _, layer, part, _ = name.split(".")
    p = f"model.layers.{layer}."
    plain = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate_inp": "block_sparse_moe.gate"}
    if part in plain:
        x = values[f"{p}{plain[part]}.weight"]
        heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
        return interleaved(x, heads[part]) if part in heads else x
    w = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}[part]
    return np.stack([values[f"{p}block_sparse_moe.experts.{e}.{w}.weight"] for e in range(SHAPE["num_local_experts"])])


def check_gguf(folder, values):
    import gguf
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q6_k", "q5_k_m", "q4_k_m"):
        out = WORK / f"{kind}.gguf"
        mixtral("convert", "--model", folder, "--to", "gguf", "--type", kind, "--out", out, "-q")
        reader = gguf.GGUFReader(out)
        wrong, worst = [], 0.0
        for t in reader.tensors:
            want = expected(values, t.name)
            if t.tensor_type.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
                data = gguf.quants.quantize(want, t.tensor_type)
                if data.tobytes() != t.data.tobytes():
                    wrong.append(t.name)
            else:
                got = gguf.quants.dequantize(t.data, t.tensor_type).reshape(want.shape)
                worst = max(worst, float(np.sqrt(((got - want) ** 2).mean() / (want ** 2).mean())))
        report(f"gguf: {kind} has the gguf package's bytes", not wrong, f"{len(reader.tensors)} tensors{wrong[:3]}")
        if worst:
            report(f"gguf: {kind}'s K types as the gguf package decodes them", worst < 0.09, f"error {worst:.4f} of the size")


def logits(model, ids, *more):
    out = WORK / "logits.safetensors"
    mixtral("generate", "--model", model, "--method", "generate_raw", "--ids", ",".join(map(str, ids)), "--out", out,
            "--dtype", "fp32", "-q", *more)
    return load_file(out)["logits"].reshape(len(ids), -1)


def off_by(theirs, ours):
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def median_off(theirs, ours):
    """The same of the middle token: where operands are rounded a router may choose otherwise, which shows at the tokens
    from there on."""
    return float(np.median(np.abs(theirs - ours).max(1)) / np.abs(ours).max())


class Llama:
    """llama.cpp through its Python package, with its cache in f32 as ours is."""

    def __init__(self, path, lora=None):
        import llama_cpp
        self.model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1,
                                     type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
                                     lora_path=lora and str(lora))

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[:len(ids)])

    def tokens(self, text):
        return self.model.tokenize(text, add_bos=False)


    def greedy(self, count):
        ids = list(PROMPT)
        for _ in range(count):
            ids.append(int(np.argmax(self.logits(ids)[-1])))
        return ids


def greedy(model, count):
    """Prompt and continuation; shorter where the model says that it is at an end."""
    return json.loads(mixtral("generate", "--model", model, "--ids", ",".join(map(str, PROMPT)), "-n", count, "--temp", 0,
                              "--json", "--dtype", "fp32", "-q"))["ids"]


def check_llama_reads(folder):
    """GGUF files that are written here."""
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"):
        out = WORK / f"llama-{kind}.gguf"
        mixtral("convert", "--model", folder, "--to", "gguf", "--type", kind, "--out", out, "-q")
        model = Llama(out)
        # llama.cpp rounds what quantized weights are multiplied by to 8 bits, and for 16 bits to these.
        off = (off_by if kind == "f32" else median_off)(model.logits(PROMPT), logits(out, PROMPT))
        report(f"llama.cpp: {kind} loads, and its logits are ours", off < (1e-4 if kind == "f32" else 0.05),
               f"{off:.1e} of the largest")
        ours = greedy(out, 16)
        theirs = model.greedy(len(ours) - len(PROMPT))
        same, note = theirs == ours, str(theirs[len(PROMPT):])
        if not same and kind not in ("f32", "f16"):
            # Where two tokens are nearer to each other than the rounding is large, either may come first.
            at = next(i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b)
            row, rounded = logits(out, ours[:at])[-1], model.logits(ours[:at])[-1]
            gap, rounding = float(row[ours[at]] - row[theirs[at]]), float(np.abs(row - rounded).max())
            same = gap <= 2 * rounding
            note = f"up to token {at - len(PROMPT)}, where two are {gap:.2g} apart and operands' rounding changes {rounding:.2g}"
        report(f"llama.cpp: {kind} gives the same greedy tokens", same, note)
        row = json.loads(subprocess.run([PROGRAM, "tokenizer", "encode", "--tokenizer", str(out), "--jsonl"],
                                        input='{"text": "abc hijj"}\n', capture_output=True, text=True).stdout)
        text = model.tokens(b"abc hijj")
        report(f"llama.cpp: {kind} has the same tokenizer", text == row["ids"], str(text))


def hugging_face(tensors):
    """GGUF tensors in full precision under Hugging Face's names."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    plain = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate_inp": "block_sparse_moe.gate"}
    heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
    experts = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
    found = {}
    for name, x in tensors.items():
        x, parts = x.astype(np.float32), name.split(".")
        if parts[0] in top:
            found[top[parts[0]] + ".weight"] = x
            continue
        layer, part = f"model.layers.{parts[1]}.", parts[2]
        if part in experts:
            for e in range(len(x)):
                found[f"{layer}block_sparse_moe.experts.{e}.{experts[part]}.weight"] = np.ascontiguousarray(x[e])
            continue
        if part in heads:
            x = x.reshape(heads[part], -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        found[f"{layer}{plain[part]}.weight"] = np.ascontiguousarray(x)
    return found


def check_llama_quantizes(folder, values):
    """llama.cpp's own quantizations of the same model."""
    import gguf
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    for kind, number in (("q8_0", 7), ("q4_0", 2), ("q4_k_m", 15), ("q5_k_m", 17), ("q6_k", 18)):
        params.ftype, theirs = number, WORK / f"theirs-{kind}.gguf"
        assert llama_cpp.llama_model_quantize(str(WORK / "llama-f32.gguf").encode(), str(theirs).encode(), params) == 0
        ours = WORK / f"ours-{kind}.gguf"
        mixtral("convert", "--model", folder, "--to", "gguf", "--type", kind, "--out", ours, "-q")
        a, b = ({t.name: t for t in gguf.GGUFReader(f).tensors} for f in (ours, theirs))
        types = [n for n in b if a[n].tensor_type != b[n].tensor_type]
        report(f"llama.cpp: {kind} has the same type for each tensor", not types, str(types[:3]))
        same = [n for n in b if a[n].data.tobytes() == b[n].data.tobytes()]
        exact = [n for n in b if b[n].tensor_type.name in ("Q8_0", "Q4_0", "F32")]
        report(f"llama.cpp: {kind}'s Q8_0 and Q4_0 tensors have its bytes", set(exact) <= set(same), f"{len(exact)} tensors")
        decoded = [{n: gguf.quants.dequantize(x.data, x.tensor_type).reshape(expected(values, n).shape)
                    for n, x in t.items()} for t in (a, b)]
        errors = [sum(float(((x - expected(values, n)) ** 2).sum()) for n, x in t.items()) for t in decoded]
        report(f"llama.cpp: {kind} of ours is no further from the source", errors[0] <= errors[1] * 1.001,
               f"squared error {errors[0]:.5g}, theirs {errors[1]:.5g}")
        plain = WORK / f"decoded-{kind}"
        plain.mkdir()
        save_file(hugging_face(decoded[1]), plain / "model.safetensors", {"format": "pt"})
        for name in ("config.json", "tokenizer.model"):
            (plain / name).write_bytes((folder / name).read_bytes())
        off = off_by(logits(plain, PROMPT), logits(theirs, PROMPT))
        report(f"llama.cpp: its {kind} runs here as the gguf package decodes it", off < 1e-5, f"{off:.1e} of the largest")


def make_peft_adapter(folder):
    """An adapter of PEFT's form with random weights."""
    rng, rank, peft = np.random.default_rng(6), 4, WORK / "peft"
    peft.mkdir(exist_ok=True)
    d, f, tensors = SHAPE["hidden_size"], SHAPE["intermediate_size"], {}
    shapes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (d // 2, d), "self_attn.o_proj": (d, d)}
    for e in range(SHAPE["num_local_experts"]):
        shapes |= {f"block_sparse_moe.experts.{e}.w1": (f, d), f"block_sparse_moe.experts.{e}.w2": (d, f)}
    for layer in range(SHAPE["num_hidden_layers"]):
        for module, (rows, columns) in shapes.items():
            at = f"base_model.model.model.layers.{layer}.{module}"
            for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
                tensors[f"{at}.{part}.weight"] = (0.2 * rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    save_file(tensors, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(folder), "r": rank,
         "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
         "target_modules": ["q_proj", "k_proj", "o_proj", "w1", "w2"]}))
    return peft


def check_llama_adapter(folder):
    """An adapter of PEFT's form as a GGUF file."""
    peft, out = make_peft_adapter(folder), WORK / "adapter.gguf"
    mixtral("convert", "--model", folder, "--adapter", peft, "--to", "gguf", "--out", out, "-q")
    base, tuned = logits(folder, PROMPT), logits(folder, PROMPT, "--adapter", peft)
    theirs = Llama(WORK / "llama-f32.gguf", out).logits(PROMPT)
    off, change = off_by(theirs, tuned), off_by(base, tuned)
    report("llama.cpp: an adapter loads, and its logits are ours", off < 1e-4 < 0.01 < change,
           f"{off:.1e} of the largest; the adapter changes {change:.1e}")
    back = off_by(logits(WORK / "llama-f32.gguf", PROMPT, "--adapter", out), tuned)
    report("the GGUF adapter gives the same logits here", back < 1e-5, f"{back:.1e} of the largest")


def check_llama(folder, values):
    check_llama_reads(folder)
    check_llama_quantizes(folder, values)
    check_llama_adapter(folder)


def check_mlx_adapters(folder):
    """An adapter of PEFT's form as mlx-lm's, and one that mlx-lm writes."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
    from mlx_lm.utils import load_model, save_config

    def with_mlx(model):
        return np.array(model(mx.array([PROMPT])))[0]

    def compare(what, theirs, ours):
        off, change = off_by(theirs, ours), off_by(logits(folder, PROMPT), ours)
        report(f"mlx-lm: {what}", off < 1e-4 < 0.01 < change, f"{off:.1e} of the largest; the adapter changes {change:.1e}")

    peft, out = make_peft_adapter(folder), WORK / "ours-mlx-adapter"
    mixtral("convert", "--model", folder, "--adapter", peft, "--to", "mlx", "--out", out, "-q")
    model = load_adapters(load_model(WORK / "mlx-f32")[0], str(out))
    compare("an adapter loads, and its logits are ours", with_mlx(model), logits(folder, PROMPT, "--adapter", peft))

    model, out = load_model(WORK / "mlx-f32")[0], WORK / "their-mlx-adapter"
    out.mkdir()
    experts = "block_sparse_moe.switch_mlp."
    settings = {"rank": 4, "scale": 3.0, "dropout": 0.0,
                "keys": ["self_attn.q_proj", "self_attn.v_proj", experts + "gate_proj", experts + "down_proj"]}
    model.freeze()
    linear_to_lora_layers(model, SHAPE["num_hidden_layers"] - 1, settings)
    mx.random.seed(7)
    model.update(tree_map(lambda x: 0.05 * mx.random.normal(x.shape), model.trainable_parameters()))
    mx.save_safetensors(str(out / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    save_config({"fine_tune_type": "lora", "num_layers": SHAPE["num_hidden_layers"] - 1, "lora_parameters": settings},
                out / "adapter_config.json")
    compare("its adapter gives its logits here", with_mlx(model), logits(folder, PROMPT, "--adapter", out))


def check_mlx(folder, values):
    import mlx.core as mx
    from mlx_lm.utils import load_model
    mx.set_default_device(mx.cpu)
    for kind in ("f32", "int8", "int4"):  # the products of experts in 16 bits are not in MLX's CPU backend
        out = WORK / f"mlx-{kind}"
        mixtral("convert", "--model", folder, "--to", "mlx", "--type", kind, "--out", out, "-q")
        model, _ = load_model(out)
        theirs = np.array(model(mx.array([PROMPT])).astype(mx.float32))[0]
        ours = logits(out, PROMPT)
        off = median_off(theirs, ours)
        report(f"mlx-lm: {kind} loads, and its logits are ours", off < (1e-4 if kind == "f32" else 0.05), f"{off:.1e} of the largest")
        if kind == "f32":
            continue
        mixtral("convert", "--model", out, "--to", "hf", "--out", WORK / f"back-{kind}", "-q")
        back, stored = load_file(WORK / f"back-{kind}" / "model.safetensors"), mx.load(str(out / "model.safetensors"))
        wrong = []
        for path in (k[:-7] for k in stored if k.endswith(".scales")):
            want = np.array(mx.dequantize(stored[path + ".weight"], stored[path + ".scales"].astype(mx.float32),
                                          stored[path + ".biases"].astype(mx.float32), 64, int(kind[3:])))
            base, _, last = path.partition(".switch_mlp.")
            w = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.get(last)
            got = np.stack([back[f"{base}.experts.{e}.{w}.weight"] for e in range(len(want))]) if w else back[path + ".weight"]
            if not np.array_equal(got, want):
                wrong.append(path)
        report(f"mlx-lm: {kind} decoded here is what MLX decodes, to the bit", not wrong, str(wrong[:3]))
    check_mlx_adapters(folder)


folder, values = make_model()
for peer in PEERS:
    {"gguf": check_gguf, "llama": check_llama, "mlx": check_mlx}[peer](folder, values)
print(f"{failures} of the checks are wrong")
sys.exit(failures > 0)
