"""Hugging Face's training speed on this GPU, for comparison with `mixtral bench`.

Usage: hf_train.py pretrain|lora [--layers N] [--batch-size B] [--context T] [--compile no|model|layers]

pretrain: transformers' Mixtral of this program's `seed` configuration, autocast to bf16, fused AdamW, gradients
clipped at 1. lora: PEFT, rank 16 on the attention of 8x7B's shape with N layers, bf16, checkpointed blocks.
Weights and tokens are random. Prints one JSON object a measurement. Needs torch, transformers and, for lora, peft.
"""
import argparse
import json
import statistics
import time

import torch
import transformers

torch.backends.cuda.matmul.allow_tf32 = True


def seed_config():
    return transformers.MixtralConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=8, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=4096, sliding_window=None)


def large_config(layers):
    return transformers.MixtralConfig(num_hidden_layers=layers, max_position_embeddings=32768, sliding_window=None,
                                      rope_theta=1e6)


def build(config, dtype):
    config._attn_implementation = "sdpa"
    config._experts_implementation = "grouped_mm"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = transformers.MixtralForCausalLM(config)
    torch.set_default_dtype(before)
    return model.train()


def median_seconds(step, warmup, count):
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def report(what, options, seconds):
    tokens = options.batch_size * options.context
    print(json.dumps({"peer": what, "step_ms": seconds * 1e3, "tok_per_s": tokens / seconds,
                      "peak_gib": torch.cuda.max_memory_allocated() / 2**30}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["pretrain", "lora"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--compile", choices=["no", "model", "layers"], default="no",
                        help="layers: one decoder layer's code, which all layers then share; much quicker to compile")
    options = parser.parse_args()
    vocabulary = 32000
    ids = torch.randint(0, vocabulary, (options.batch_size, options.context), device="cuda")
    if options.work == "pretrain":
        model = build(seed_config(), torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        run = torch.compile(model) if options.compile == "model" else model
        if options.compile == "layers":
            for layer in model.model.layers:
                layer.compile()

        def step():
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = run(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        name = "transformers, grouped_mm" + {"no": "", "model": ", compiled", "layers": ", layers compiled"}[options.compile]
        report(name, options, median_seconds(step, 3, 8))
        return
    import peft

    model = build(large_config(options.layers), torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    tuned = peft.get_peft_model(model, peft.LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step():
        tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    report("transformers + peft, grouped_mm, checkpointed", options, median_seconds(step, 2, 4))


if __name__ == "__main__":
    main()
