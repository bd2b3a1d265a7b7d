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


def logits(model, ids):
    out = WORK / "logits.safetensors"
    mixtral("generate", "--model", model, "--method", "generate_raw", "--ids", ",".join(map(str, ids)), "--out", out,
            "--dtype", "fp32", "-q")
    return load_file(out)["logits"].reshape(len(ids), -1)


def check_llama(folder, values):
    import llama_cpp
    sources = {kind: WORK / f"llama-{kind}.gguf" for kind in ("f32", "q8_0", "q4_0", "q4_k_m")}
    for kind, out in sources.items():
        mixtral("convert", "--model", folder, "--to", "gguf", "--type", kind, "--out", out, "-q")
        model = llama_cpp.Llama(str(out), n_ctx=256, logits_all=True, verbose=False, n_threads=2)
        model.eval(PROMPT)
        theirs = np.array(model.scores[:len(PROMPT)])
        ours = logits(out, PROMPT)
        off = float(np.abs(theirs - ours).max() / np.abs(ours).max())
        report(f"llama.cpp: {kind} loads, and its logits are ours", off < (0.001 if kind == "f32" else 0.05), f"{off:.1e} of the largest")
        ids, next_ids = list(PROMPT), list(PROMPT)
        model.reset()
        for _ in range(16):
            model.reset(), model.eval(ids)
            ids.append(int(np.argmax(model.scores[len(ids) - 1])))
            next_ids.append(int(np.argmax(logits(out, next_ids)[-1])))
        report(f"llama.cpp: {kind} gives the same 16 greedy tokens", ids == next_ids, str(ids[len(PROMPT):]))
        text = model.tokenize(b"abc hijj", add_bos=False)
        row = json.loads(subprocess.run([PROGRAM, "tokenizer", "encode", "--tokenizer", str(out), "--jsonl"],
                                        input='{"text": "abc hijj"}\n', capture_output=True, text=True).stdout)
        report(f"llama.cpp: {kind} has the same tokenizer", text == row["ids"], str(text))
    params = llama_cpp.llama_model_quantize_default_params()
    for kind, number in (("q8_0", 7), ("q4_0", 2), ("q4_k_m", 15), ("q5_k_m", 17), ("q6_k", 18)):
        params.ftype, theirs = number, WORK / f"theirs-{kind}.gguf"
        assert llama_cpp.llama_model_quantize(str(sources["f32"]).encode(), str(theirs).encode(), params) == 0
        ours = WORK / f"ours-{kind}.gguf"
        mixtral("convert", "--model", folder, "--to", "gguf", "--type", kind, "--out", ours, "-q")
        import gguf
        a, b = ({t.name: t for t in gguf.GGUFReader(f).tensors} for f in (ours, theirs))
        types = [n for n in b if a[n].tensor_type != b[n].tensor_type]
        report(f"llama.cpp: {kind} has the same type for each tensor", not types, str(types[:3]))
        same = [n for n in b if a[n].data.tobytes() == b[n].data.tobytes()]
        exact = [n for n in b if b[n].tensor_type.name in ("Q8_0", "Q4_0", "F32")]
        report(f"llama.cpp: {kind}'s Q8_0 and Q4_0 tensors have its bytes", set(exact) <= set(same), f"{len(exact)} tensors")
        errors = []
        for t in (a, b):
            e = sum(float(((gguf.quants.dequantize(x.data, x.tensor_type).reshape(expected(values, n).shape) - expected(values, n)) ** 2).sum())
                    for n, x in t.items())
            errors.append(e)
        report(f"llama.cpp: {kind} of ours is no further from the source", errors[0] <= errors[1] * 1.001, f"squared error {errors[0]:.5g}, theirs {errors[1]:.5g}")


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
        # In 16 bits a router may choose otherwise, which shows at the tokens from there on: the median counts.
        off = float(np.median(np.abs(theirs - ours).max(1)) / np.abs(ours).max())
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


folder, values = make_model()
for peer in PEERS:
    {"gguf": check_gguf, "llama": check_llama, "mlx": check_mlx}[peer](folder, values)
print(f"{failures} of the checks are wrong")
sys.exit(failures > 0)
