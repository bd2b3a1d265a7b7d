"""Models in every GGUF type beside the same models in F32, decoded by the gguf package: both must give
the same logits, to the bit. What the package cannot quantize is filled with random codes."""
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
# Bytes of a block at which a number of 16 bits stands.
HALVES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "IQ4_NL": [0], "IQ4_XS": [0]}
WIDTH, EXPERT_WIDTH, HEADS, KV_HEADS, EXPERTS, TOKENS, LAYERS = 256, 256, 4, 2, 3, 32, 2
random = np.random.default_rng(5)


def random_blocks(name, rows, columns):
    """Random codes under scales that give numbers of a weight's size."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    data = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        scale = (random.uniform(0.2, 1, len(data)) * 2e-4).astype("<f2")
        data[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        data[:, 0] = random.integers(119, 123, len(data))
    return data.reshape(rows, -1)


def packed(name, shape):
    """Bytes of a tensor in a type, and its numbers."""
    kind = gguf.GGMLQuantizationType[name]
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    values = (random.standard_normal((rows, columns)) * 0.05).astype(np.float32)
    try:
        data = quantize(values, kind)
    except NotImplementedError:
        data = random_blocks(name, rows, columns)
    return data.reshape(*shape[:-1], -1), dequantize(data, kind).astype(np.float32).reshape(shape)


def write(path, tensors):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(EXPERT_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def models(name, folder):
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (TOKENS, WIDTH), "output.weight": (TOKENS, WIDTH)}
    norms = {"output_norm.weight": WIDTH}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        shapes |= {at + "attn_q.weight": (WIDTH, WIDTH), at + "attn_k.weight": (kv, WIDTH),
                   at + "attn_v.weight": (kv, WIDTH), at + "attn_output.weight": (WIDTH, WIDTH),
                   at + "ffn_gate_exps.weight": (EXPERTS, EXPERT_WIDTH, WIDTH),
                   at + "ffn_up_exps.weight": (EXPERTS, EXPERT_WIDTH, WIDTH),
                   at + "ffn_down_exps.weight": (EXPERTS, WIDTH, EXPERT_WIDTH)}
        norms |= {at + "attn_norm.weight": WIDTH, at + "ffn_norm.weight": WIDTH}
    stored, plain, f32 = {}, {}, gguf.GGMLQuantizationType.F32
    for tensor, width in norms.items():
        stored[tensor] = plain[tensor] = (np.ones(width, np.float32), f32)
    for layer in range(LAYERS):
        gate = (random.standard_normal((EXPERTS, WIDTH)) * 0.1).astype(np.float32)
        stored[f"blk.{layer}.ffn_gate_inp.weight"] = (gate, f32)
        plain[f"blk.{layer}.ffn_gate_inp.weight"] = (gate, f32)
    for tensor, shape in shapes.items():
        data, values = packed(name, shape)
        stored[tensor] = (data, gguf.GGMLQuantizationType[name])
        plain[tensor] = (values, f32)
    write(folder / "stored.gguf", stored)
    write(folder / "plain.gguf", plain)


def logits(program, model, out, dtype):
    subprocess.run([program, "generate", "--model", model, "--method", "generate_raw", "--ids",
                    "1,5,9,2,7,3,11,30", "--out", out, "--dtype", dtype, "-q"], check=True)
    raw = out.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:8 + length])["logits"]
    begin, end = entry["data_offsets"]
    return np.frombuffer(raw[8 + length + begin:8 + length + end], "<f4")


def main():
    program, failed = str(pathlib.Path(sys.argv[1]).resolve()), 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind in TYPES:
            models(kind, folder)
            plain = logits(program, folder / "plain.gguf", folder / "plain", "fp32")
            stored = logits(program, folder / "stored.gguf", folder / "stored", "fp32")
            kept = logits(program, folder / "stored.gguf", folder / "kept", "auto")
            same = np.array_equal(plain, stored) and np.isfinite(plain).all()
            off = float(np.abs(kept - plain).max() / np.abs(plain).max())
            failed += not same
            print(f"{kind:7} {'equal' if same else 'DIFFERENT'} in f32; kept in its type, off by "
                  f"{off:.1e} of the largest logit", flush=True)
    sys.exit(1 if failed else 0)


main()
