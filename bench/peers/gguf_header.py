"""The header of a GGUF file of a Mixtral model with a made-up vocabulary. Needs gguf."""
from dataclasses import dataclass

import gguf


@dataclass(frozen=True)
class Shape:
    """What a file's metadata say of the model."""
    layers: int
    width: int
    inner: int
    heads: int
    context: int
    eps: float
    vocab: int = 32000
    kv_heads: int = 8
    experts: int = 8
    top_k: int = 2

    @property
    def kv_width(self):
        return self.width // self.heads * self.kv_heads


def writer_of(out, shape, file_type):
    """A writer of the file `out` with the metadata and the vocabulary, ready for tensors."""
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(file_type)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{i}" for i in range(shape.vocab - 3 - len(bytes_))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>"] + bytes_ + words)
    writer.add_token_scores([0.0] * (3 + len(bytes_)) + [-float(i) for i in range(len(words))])
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * len(bytes_) +
                           [kinds.NORMAL] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return writer
