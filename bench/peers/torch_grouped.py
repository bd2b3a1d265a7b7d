"""torch's grouped products on this GPU, beside `cuda_bench grouped`.

Usage: torch_grouped.py [CUDA_BENCH [RUNS]]

bf16, 8 experts, the shapes of 8x7B and of this program's `seed`: y = x W', dx = dy W and dW = dy' x through
torch's grouped_mm, with even loads and with loads that fall as 1, 1/2, 1/3, ...; "accumulated" adds dW to f32 gradients.
Prints a line a product: a name as cuda_bench has it, microseconds (median) and TFLOP/s. With the program cuda_bench, the
two run in turn RUNS times (default 5), and a line has the medians over the runs in TFLOP/s, how far the lowest and the
highest run are from them, and the ratio of the medians. Needs torch on a Hopper GPU.
"""
import re
import statistics
import subprocess
import sys
import time

import torch

EXPERTS = 8
grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm


def ends_of(rows, zipf):
    shares = [1 / (g + 1) if zipf else 1 for g in range(EXPERTS)]
    total, so_far, ends = sum(shares), 0.0, []
    for share in shares:
        so_far += share / total
        ends.append(round(so_far * rows))
    return torch.tensor(ends, dtype=torch.int32, device="cuda")


def median_seconds(work):
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    repeats = max(1, min(100, int(0.004 / (time.perf_counter() - start))))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / repeats)
    return statistics.median(seconds)


def measure(name, rows, inputs, outputs, zipf):
    """Yields (name of the product, TFLOP/s, seconds)."""
    ends = ends_of(rows, zipf)
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(rows, outputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(EXPERTS, outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
    gradient = torch.zeros(EXPERTS, outputs, inputs, device="cuda")
    work = {
        ("grouped_matmul", ""): lambda: grouped_mm(x, weight.transpose(1, 2), offs=ends),
        ("grouped_matmul_input", ""): lambda: grouped_mm(dy, weight, offs=ends),
        ("grouped_matmul_weight", ""): lambda: grouped_mm(dy.t(), x, offs=ends),
        ("grouped_matmul_weight", " accumulated"): lambda: gradient.add_(grouped_mm(dy.t(), x, offs=ends)),
    }
    for (product, suffix), run in work.items():
        try:
            seconds = median_seconds(run)
        except RuntimeError as error:
            print(f"torch {product} {name + suffix}: {str(error).splitlines()[0]}", flush=True)
            continue
        yield f"{product} {name + suffix}", 2 * rows * inputs * outputs / seconds * 1e-12, seconds


def measure_all():
    rows = EXPERTS * 2048
    for zipf in (False, True):
        load = "zipf" if zipf else "even"
        yield from measure(f"8x7b up {load}", rows, 4096, 14336, zipf)
        yield from measure(f"8x7b down {load}", rows, 14336, 4096, zipf)
        yield from measure(f"seed up {load}", rows, 1024, 4096, zipf)
        yield from measure(f"seed down {load}", rows, 4096, 1024, zipf)


def measure_in_turn(program, runs):
    """Lists of TFLOP/s by product: the program's, and torch's."""
    own, peer = {}, {}
    for _ in range(runs):
        lines = subprocess.run([program, "grouped"], check=True, capture_output=True, text=True).stdout
        for name, rate in re.findall(r"^(grouped_matmul.*?) +[0-9.]+ us .* ([0-9.]+) TFLOP/s", lines, re.MULTILINE):
            own.setdefault(name, []).append(float(rate))
        for name, rate, _ in measure_all():
            peer.setdefault(name, []).append(rate)
    return own, peer


def summary(rates):
    middle = statistics.median(rates)
    return f"{middle:6.1f} ({100 * (min(rates) / middle - 1):+4.0f}% {100 * (max(rates) / middle - 1):+4.0f}%)"


def main():
    if len(sys.argv) < 2:
        for name, rate, seconds in measure_all():
            print(f"torch {name:56} {seconds * 1e6:9.1f} us {rate:8.1f} TFLOP/s", flush=True)
        return
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    own, peer = measure_in_turn(sys.argv[1], runs)
    print(f"medians of {runs} runs in turn, TFLOP/s: here, torch's grouped_mm, here / torch")
    for name, rates in peer.items():
        ratio = statistics.median(own[name]) / statistics.median(rates)
        print(f"{name:48} {summary(own[name])}  {summary(rates)}  {ratio:5.3f}")


if __name__ == "__main__":
    main()
