"""Hugging Face's training speed on this CPU, for comparison with `mixtral bench`.

Usage: hf_train_cpu.py pretrain|lora [--compile] [--batch-size B] [--context T] [--steps N] [--threads N]
transformers' Mixtral of bench/peers/cpu.py's configuration in f32, fused AdamW, gradients clipped at 1. lora: PEFT,
rank 8 on queries, values and the router. Weights and tokens are random. Prints one JSON object.
Needs torch, transformers and, for lora, peft.
"""
import argparse
import json
import statistics
import time

import torch
import transformers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["pretrain", "lora"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=2048,
        sliding_window=None, rope_theta=1e6)
    config._attn_implementation = "sdpa"
    model = transformers.MixtralForCausalLM(config).train()
    if options.work == "lora":
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "gate"], task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    run = torch.compile(model) if options.compile else model

    def step():
        tokens = torch.randint(0, 8192, (options.batch_size, options.context))
        loss = run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    rate = options.batch_size * options.context / statistics.median(seconds)
    print(json.dumps({"peer": "torch " + ("compiled" if options.compile else "eager"), "work": options.work,
                      "tok_per_s": rate, "torch": torch.__version__, "transformers": transformers.__version__}))


main()
