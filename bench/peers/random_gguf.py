"""Writes a GGUF file of the `seed` configuration in bf16 with random weights and a made-up vocabulary.

Usage: random_gguf.py OUT.gguf [LAYERS]
It is what bench/peers/cpu.py measures this program and llama.cpp with. Needs gguf and numpy.
"""
import sys

import gguf
import numpy as np

VOCAB, WIDTH, INNER, HEADS, KV_HEADS, EXPERTS, TOP_K = 32000, 1024, 4096, 16, 8, 8, 2


def matrix(random, *shape):
    """Normal numbers, cut off to bf16 (the upper half of an f32's bits)."""
    values = (random.standard_normal(shape, dtype=np.float32) * 0.02).view(np.uint32)
    return (values >> 16).astype(np.uint16).view(np.uint8)


def main():
    out, layers = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{i}" for i in range(VOCAB - 3 - len(bytes_))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>"] + bytes_ + words)
    writer.add_token_scores([0.0] * (3 + len(bytes_)) + [-float(i) for i in range(len(words))])
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * len(bytes_) +
                           [kinds.NORMAL] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name, *shape):
        writer.add_tensor(name, matrix(random, *shape), raw_dtype=gguf.GGMLQuantizationType.BF16)

    norm = np.ones(WIDTH, dtype=np.float32)
    kv = WIDTH // HEADS * KV_HEADS
    add("token_embd.weight", VOCAB, WIDTH)
    for layer in range(layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", norm)
        writer.add_tensor(block + "ffn_norm.weight", norm)
        writer.add_tensor(block + "ffn_gate_inp.weight",
                          random.standard_normal((EXPERTS, WIDTH), dtype=np.float32) * np.float32(0.02))
        add(block + "attn_q.weight", WIDTH, WIDTH)
        add(block + "attn_k.weight", kv, WIDTH)
        add(block + "attn_v.weight", kv, WIDTH)
        add(block + "attn_output.weight", WIDTH, WIDTH)
        add(block + "ffn_gate_exps.weight", EXPERTS, INNER, WIDTH)
        add(block + "ffn_up_exps.weight", EXPERTS, INNER, WIDTH)
        add(block + "ffn_down_exps.weight", EXPERTS, WIDTH, INNER)
    writer.add_tensor("output_norm.weight", norm)
    add("output.weight", VOCAB, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
