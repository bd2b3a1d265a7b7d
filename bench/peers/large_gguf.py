"""Writes a GGUF file of Mixtral 8x7B's shape in Q4_0 with random weights, 26 GB, for models larger than the memory.

Usage: large_gguf.py OUT.gguf [LAYERS]
The experts' bytes repeat from layer to layer. The embedding outweighs what the layers add to it, so that different
tokens go to different experts in every layer. Needs gguf and numpy.
"""
import sys

import gguf
import numpy as np

from gguf_header import Shape, writer_of

WIDTH, INNER = 4096, 14336
BLOCK, BLOCK_BYTES = 32, 18
Q4_0, F32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32


def main():
    out, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32
    random = np.random.default_rng(0)
    model = Shape(layers=layers, width=WIDTH, inner=INNER, heads=32, context=32768, eps=1e-5)
    writer = writer_of(out, model, gguf.LlamaFileType.MOSTLY_Q4_0)

    # Blocks with the same scale and random codes: numbers of deviation 0.02.
    count = model.experts * INNER * WIDTH // BLOCK
    blocks = random.integers(0, 256, (count, BLOCK_BYTES), dtype=np.uint8)
    blocks[:, :2] = np.array([0.0043], dtype=np.float16).view(np.uint8)
    tensors = []

    def packed(name, *shape):
        size = int(np.prod(shape)) // BLOCK
        shift = int(random.integers(0, count - size + 1)) if size < count else 0
        tensors.append((name, shape, Q4_0, lambda: blocks[shift:shift + size]))

    def embedding(name, *shape):
        values = blocks[:int(np.prod(shape)) // BLOCK].copy()
        values[:, :2] = np.array([2000], dtype=np.float16).view(np.uint8)
        tensors.append((name, shape, Q4_0, lambda: values))

    def plain(name, values):
        tensors.append((name, values.shape, F32, lambda: values))

    norm = np.ones(WIDTH, dtype=np.float32)
    kv = model.kv_width
    embedding("token_embd.weight", model.vocab, WIDTH)
    for layer in range(layers):
        block = f"blk.{layer}."
        plain(block + "attn_norm.weight", norm)
        plain(block + "ffn_norm.weight", norm)
        plain(block + "ffn_gate_inp.weight",
              random.standard_normal((model.experts, WIDTH), dtype=np.float32) * np.float32(0.02))
        packed(block + "attn_q.weight", WIDTH, WIDTH)
        packed(block + "attn_k.weight", kv, WIDTH)
        packed(block + "attn_v.weight", kv, WIDTH)
        packed(block + "attn_output.weight", WIDTH, WIDTH)
        packed(block + "ffn_gate_exps.weight", model.experts, INNER, WIDTH)
        packed(block + "ffn_up_exps.weight", model.experts, INNER, WIDTH)
        packed(block + "ffn_down_exps.weight", model.experts, WIDTH, INNER)
    plain("output_norm.weight", norm)
    packed("output.weight", model.vocab, WIDTH)
    for name, shape, kind, values in tensors:
        size = int(np.prod(shape))
        width = size * 4 if kind == F32 else size // BLOCK * BLOCK_BYTES
        # Of quantized tensors gguf takes the shape in bytes.
        stored = shape if kind == F32 else (*shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES)
        writer.add_tensor_info(name, stored, np.dtype(np.float32 if kind == F32 else np.uint8), width, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, _, values in tensors:
        writer.write_tensor_data(np.ascontiguousarray(values()))
    writer.close()


main()
