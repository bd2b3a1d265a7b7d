"""Writes a GGUF file of the `seed` configuration in bf16 with random weights and a made-up vocabulary.

Usage: random_gguf.py OUT.gguf [LAYERS]
It is what bench/peers/cpu.py measures this program and llama.cpp with. Needs gguf and numpy.
"""
import sys

import gguf
import numpy as np

from gguf_header import Shape, writer_of

WIDTH, INNER = 1024, 4096


def matrix(random, *shape):
    """Normal numbers, cut off to bf16 (the upper half of an f32's bits)."""
    values = (random.standard_normal(shape, dtype=np.float32) * 0.02).view(np.uint32)
    return (values >> 16).astype(np.uint16).view(np.uint8)


def main():
    out, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12
    random = np.random.default_rng(0)
    model = Shape(layers=layers, width=WIDTH, inner=INNER, heads=16, context=4096, eps=1e-6)
    writer = writer_of(out, model, gguf.LlamaFileType.MOSTLY_BF16)

    def add(name, *shape):
        writer.add_tensor(name, matrix(random, *shape), raw_dtype=gguf.GGMLQuantizationType.BF16)

    norm = np.ones(WIDTH, dtype=np.float32)
    kv = model.kv_width
    add("token_embd.weight", model.vocab, WIDTH)
    for layer in range(layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", norm)
        writer.add_tensor(block + "ffn_norm.weight", norm)
        writer.add_tensor(block + "ffn_gate_inp.weight",
                          random.standard_normal((model.experts, WIDTH), dtype=np.float32) * np.float32(0.02))
        add(block + "attn_q.weight", WIDTH, WIDTH)
        add(block + "attn_k.weight", kv, WIDTH)
        add(block + "attn_v.weight", kv, WIDTH)
        add(block + "attn_output.weight", WIDTH, WIDTH)
        add(block + "ffn_gate_exps.weight", model.experts, INNER, WIDTH)
        add(block + "ffn_up_exps.weight", model.experts, INNER, WIDTH)
        add(block + "ffn_down_exps.weight", model.experts, WIDTH, INNER)
    writer.add_tensor("output_norm.weight", norm)
    add("output.weight", model.vocab, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
