"""torch's grouped products on this GPU, for comparison with `cuda_bench grouped`.

Usage: torch_grouped.py

bf16, 8 experts, the shapes of 8x7B and of this program's `seed`: y = x W', dx = dy W and dW = dy' x through
torch's grouped_mm, with even loads and with loads that fall as 1, 1/2, 1/3, ...; "accumulated" adds dW to f32 gradients.
Prints a line a product: a name as cuda_bench has it, microseconds (median) and TFLOP/s. Needs torch on a Hopper GPU.
"""
import statistics
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
        print(f"torch {product + ' ' + name + suffix:56} {seconds * 1e6:9.1f} us "
              f"{2 * rows * inputs * outputs / seconds * 1e-12:8.1f} TFLOP/s", flush=True)


def main():
    rows = EXPERTS * 2048
    for zipf in (False, True):
        load = "zipf" if zipf else "even"
        measure(f"8x7b up {load}", rows, 4096, 14336, zipf)
        measure(f"8x7b down {load}", rows, 14336, 4096, zipf)
        measure(f"seed up {load}", rows, 1024, 4096, zipf)
        measure(f"seed down {load}", rows, 4096, 1024, zipf)


if __name__ == "__main__":
    main()
