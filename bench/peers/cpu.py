"""Speeds on this CPU of `mixtral bench` and of peers, in turn, as a table. scripts/bench_cpu calls it.

Usage: cpu.py PROGRAM DIR WORK... [--types T...] [--rounds N] [--threads N] [--svg FILE]
DIR keeps the models. Types: those of TYPES below, and q2_k, q3_k_m, iq4_nl and iq4_xs, which llama.cpp writes. Each work is measured N times, this program and its peers one after the other, and the medians
count. A peer that is not installed or fails is named.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from seed_models import seed_model

HERE = pathlib.Path(__file__).parent
CONFIG = {
    "model_type": "mixtral", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 2048, "rope_theta": 1e6}
TYPES = ["bf16", "q8_0", "int8", "q4_0", "int4", "q4_k_m"]
NEAREST = {"int8": "q8_0", "int4": "q4_0"}  # llama.cpp's, of types that it lacks
LORA = ["--rank", "8", "--targets", "q_proj,v_proj,gate"]


def call(command):
    """The last line that a command prints, as JSON; None and the reason on stderr where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"  {' '.join(map(str, command[:4]))} ...: {reason}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


class Bench:
    def __init__(self, program, folder, threads, python=sys.executable):
        self.program, self.folder, self.threads, self.python = program, folder, threads, python
        (folder / "config").mkdir(parents=True, exist_ok=True)
        (folder / "config" / "config.json").write_text(json.dumps(CONFIG))

    def ours(self, *arguments):
        return call([self.program, "bench", *arguments, "--json", "--device", "cpu", "--threads", self.threads])

    def peer(self, script, *arguments):
        return call([self.python, HERE / script, *arguments, "--threads", self.threads])

    def model(self, kind):
        return seed_model(self.program, self.folder, kind, self.python)

    def works(self, types):
        """Name, how to measure this program, and the peers."""
        config = self.folder / "config"
        shape = ["--batch-size", 4, "--context", 256, "--steps", 3]
        train = lambda work, *extra: self.ours(work, "--model", config, *shape, "--warmup", 2, *extra)
        hf = lambda *arguments: self.peer("hf_train_cpu.py", *arguments, *shape)
        yield "train", "training, f32", lambda: train("pretrain"), {
            "PyTorch compiled": lambda: hf("pretrain", "--compile"), "PyTorch eager": lambda: hf("pretrain")}
        yield "lora", "LoRA, f32", lambda: train("finetune", *LORA), {"PEFT": lambda: hf("lora")}
        for kind in types:
            theirs = NEAREST.get(kind, kind)
            name = kind if theirs == kind else f"{kind} (llama.cpp: {theirs})"
            def decode(kind=kind, batch=1):
                return self.ours("decode", "--model", self.model(kind), "--context", 64, "--tokens", 32, "--batch", batch,
                                 "--steps", 1, "--warmup", 1)
            def decode_peer(kind=theirs, batch=1):
                return self.peer("llama_cpu.py", self.model(kind), "decode", "--batch", batch)
            yield "decode", f"decode, {name}", decode, {"llama.cpp": decode_peer}
            yield ("batch", f"decode, 8 sequences, {name}", lambda decode=decode: decode(batch=8),
                   {"llama.cpp": lambda peer=decode_peer: peer(batch=8)})
            yield ("prefill", f"prefill of 512, {name}",
                   lambda kind=kind: self.ours("prefill", "--model", self.model(kind), "--context", 512, "--steps", 1,
                                               "--warmup", 1),
                   {"llama.cpp": lambda kind=theirs: self.peer("llama_cpu.py", self.model(kind), "prefill", "--context",
                                                               512)})


def median(results):
    rates = [result["tok_per_s"] for result in results if result]
    return statistics.median(rates) if rates else None


def draw(rows, path):
    """A bar a ratio, as an SVG."""
    bars = [(f"{name} / {peer}", ours / rate) for name, ours, peers in rows for peer, rate in peers if ours and rate]
    widest = max([ratio for _, ratio in bars] + [1])
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{24 * len(bars) + 16}" '
             'font-family="sans-serif" font-size="12">']
    for i, (name, ratio) in enumerate(bars):
        y, width = 8 + 24 * i, 330 * ratio / widest
        parts.append(f'<text x="250" y="{y + 14}" text-anchor="end">{name}</text>'
                     f'<rect x="260" y="{y}" width="{width:.0f}" height="18" fill="{"#2a7" if ratio >= 1 else "#c55"}"/>'
                     f'<text x="{265 + width:.0f}" y="{y + 14}">{ratio:.2f}</text>')
    one = 260 + 330 / widest
    parts.append(f'<path d="M{one:.0f} 4V{24 * len(bars) + 8}" stroke="#333" stroke-dasharray="3"/></svg>')
    pathlib.Path(path).write_text("\n".join(parts) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("works", nargs="*")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--svg")
    options = parser.parse_args()
    bench = Bench(options.program, options.folder, options.threads)
    rows = []
    print("| work | mixtral, tok/s | read rate used | peers, tok/s | ratio |\n|---|---|---|---|---|")
    for kind, name, ours, peers in bench.works(options.types):
        if options.works and kind not in options.works and name not in options.works:
            continue
        own, others = [], {peer: [] for peer in peers}
        for _ in range(options.rounds):
            own.append(ours())
            for peer, measure in peers.items():
                others[peer].append(measure())
        rate = median(own)
        if rate is None:
            print(f"| {name} | failed | | | |")
            continue
        shares = [result["weights_gb_per_s"] / result["read_gb_per_s"] for result in own
                  if result and "weights_gb_per_s" in result and "read_gb_per_s" in result]
        share = f"{100 * statistics.median(shares):.0f}%" if shares else ""
        rates = [(peer, median(results)) for peer, results in others.items()]
        rows.append((name, rate, rates))
        print(f"| {name} | {rate:.1f} | {share} | " +
              ", ".join(f"{peer} {value:.1f}" if value else f"{peer}: no figure" for peer, value in rates) + " | " +
              ", ".join(f"{rate / value:.2f}" for _, value in rates if value) + " |", flush=True)
    if options.svg and rows:
        draw(rows, options.svg)


main()
