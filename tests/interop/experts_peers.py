"""Compares edited models with transformers (run by the script `experts` beside this file).

Each line is a model and the largest difference of its logits, by the largest logit: of what transformers computes with
the result, from what it computes with the source, or from what this program computes with the result.
"""
import json
import pathlib
import sys
import tempfile

import torch
from program import run
from safetensors.torch import load_file
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          MixtralConfig, MixtralForCausalLM)
from transformers.utils import logging

TOLERANCE = 2e-5
TOKENS = [1, 77, 120, 5, 12, 99, 9, 33, 101, 64, 7, 127]
SHAPE = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)
failures = 0


def logits(folder):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise SystemExit(f"{folder}: {kind}: {report[kind]}")
    with torch.no_grad():
        return type(model).__name__, model.eval()(torch.tensor([TOKENS])).logits[0]


def own_logits(program, folder, scratch):
    out = scratch / "logits.safetensors"
    run(program, "generate", "--model", folder, "--ids", ",".join(map(str, TOKENS)), "--method",
        "generate_raw", "--dtype", "fp32", "--out", out)
    return load_file(out)["logits"].reshape(len(TOKENS), -1)


def compare(title, a, b):
    global failures
    difference = float((a - b).abs().max() / b.abs().max())
    wrong = not difference <= TOLERANCE
    failures += wrong
    print(f"{title:60} {difference:.1e}{'   DIFFERS' if wrong else ''}")


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        ids = scratch / "ids.jsonl"
        ids.write_text(json.dumps({"input_ids": TOKENS}) + "\n")
        sources = {
            "llama": LlamaForCausalLM(LlamaConfig(**SHAPE, rope_theta=5e5)),
            "mistral": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
            "mistral, window of 5": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
            "llama, tied head": LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
            "mistral, head width 32": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None, head_dim=32)),
            "mixtral": MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)),
        }
        folders = {}
        for title, model in sources.items():
            folders[title] = scratch / title.replace(", ", "-").replace(" ", "-")
            model.save_pretrained(folders[title])
        for title in sources:
            if title == "mixtral":
                continue
            out = scratch / f"{folders[title].name}-upcycled"
            run(program, "experts", "upcycle", "--model", folders[title], "--experts", 4, "--out", out)
            kind, found = logits(out)
            if kind != "MixtralForCausalLM":
                raise SystemExit(f"{out}: opened as {kind}")
            compare(f"upcycled {title}: as the dense model", found, logits(folders[title])[1])
        commands = {
            "upcycled with noise": ["upcycle", "--model", folders["llama"], "--experts", 4, "--noise", 0.1],
            "pruned": ["prune", "--model", folders["mixtral"], "--keep", 3, "--data", ids],
            "merged": ["merge", "--model", folders["mixtral"], "--into", 2, "--data", ids],
            "more experts": ["add", "--model", folders["mixtral"], "--count", 2],
            "grafted": ["graft", "--base", folders["llama"], "--model", folders["llama"], "--model",
                        folders["mistral"], "--prompts", ids, "--prompts", ids],
        }
        for title, command in commands.items():
            out = scratch / title.replace(" ", "-")
            run(program, "experts", *command, "--out", out)
            run(program, "convert", "--verify", out)
            compare(f"{title}: here and in transformers", own_logits(program, out, scratch), logits(out)[1])
    print("all agree" if failures == 0 else f"{failures} differ")
    return failures > 0


if __name__ == "__main__":
    logging.disable_progress_bar()
    torch.manual_seed(1)
    sys.exit(main())
