"""Measures quantized models beside their source and llama.cpp's (run by the script `quantized` beside this file).

Each line is a type: bits a weight, perplexity on the text as `evaluate --dtype fp32` has it, and how much more that is
than the source's. Exits with 1 where a bound does not hold.
"""
import ctypes
import json
import os
import pathlib
import sys
import tempfile

import llama_cpp
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from program import run

LLAMA_TYPES = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}  # llama_ftype
CALIBRATION_TOKENS = 8192
failures = 0


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def no_log(level, text, user):
    pass


def check(words, holds):
    global failures
    failures += not holds
    print(f"{'ok   ' if holds else 'WRONG'} {words}", flush=True)


def tensors(path):
    return {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}


def compare_errors(kind, plain, ours, theirs):
    """Two files must have the same types, and of no tensor may the squared error be larger in ours."""
    source, ours, theirs = tensors(plain), tensors(ours), tensors(theirs)
    types = [name for name in source if ours[name].tensor_type != theirs[name].tensor_type]
    check(f"{kind}: each tensor has llama.cpp's type{': not ' + types[0] if types else ''}", not types)
    weights = {"plain": lambda x: np.ones_like(x), "by magnitude": np.abs, "by square": np.square}
    for how, weight in weights.items():
        worst, sums = ("", 0.0), np.zeros(2)
        for name, tensor in source.items():
            x = np.asarray(tensor.data, np.float64).ravel()
            of = [dequantize(t[name].data, t[name].tensor_type).ravel() for t in (ours, theirs)]
            errors = np.array([(weight(x) * (y - x) ** 2).sum() for y in of])
            if errors[1] > 0:
                worst = max(worst, (name, errors[0] / errors[1]), key=lambda pair: pair[1])
            if ours[name].tensor_type.name.endswith("_K"):
                sums += errors
        check(f"{kind}: squared error, {how}: {sums[0] / sums[1]:.3f} of llama.cpp's in the K types, of any tensor at "
              f"most {worst[1]:.3f} ({worst[0]})", worst[1] <= 1)


def main():
    program, model, calibration, text = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)

        def perplexity(path):
            return json.loads(run(program, "evaluate", "--model", path, "--dtype", "fp32", "--data", text, "--json",
                                  "-q"))["perplexity"]

        source = perplexity(model)
        print(f"source{'':24} {source:9.4f}", flush=True)
        increase = {}

        def show(title, bits, path):
            found = perplexity(path)
            increase[title] = found / source - 1
            print(f"{title:30} {found:9.4f} {100 * increase[title]:+7.3f}%  {bits:.2f} bits a weight", flush=True)

        def quantize(title, kind, *more):
            out = work / (title.replace(" ", "-").replace(",", "") + ("" if kind.startswith("int") else ".gguf"))
            done = json.loads(run(program, "quantize", "--model", model, "--type", kind, "--out", out, "--no-check", "--json",
                                  "-q", *more))
            show(title, done["bits_per_weight"], out)
            return done

        to_text = ("--calibrate", calibration, "--tokens", CALIBRATION_TOKENS)
        llama_cpp.llama_log_set(no_log, ctypes.c_void_p())
        plain = work / "f32.gguf"
        run(program, "convert", "--model", model, "--to", "gguf", "--type", "f32", "--out", plain, "--no-check", "-q")
        for kind, ftype in LLAMA_TYPES.items():
            ours = quantize(kind, kind)
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = ftype
            theirs = work / f"llama-{kind}.gguf"
            if llama_cpp.llama_model_quantize(os.fsencode(plain), os.fsencode(theirs), params) != 0:
                raise SystemExit("llama.cpp could not quantize the model")
            compare_errors(kind, plain, work / f"{kind}.gguf", theirs)
            show(f"{kind} of llama.cpp", ours["bits_per_weight"], theirs)
            quantize(f"{kind}, calibrated", kind, *to_text)
        quantize("int8", "int8")
        bits = quantize("int4, calibrated", "int4", *to_text)["bits_per_weight"]
        quantize("int4", "int4")
        for kind in ("q8_0", "q5_0", "q4_0"):
            quantize(kind, kind)
            quantize(f"{kind}, calibrated", kind, *to_text)

        check("int8 costs 0.1% at most", increase["int8"] <= 0.001)
        check("int4, calibrated, costs 1.5% at most in 4.52 bits", increase["int4, calibrated"] <= 0.015 and bits <= 4.52)
        # Of q5_k_m by itself only the error: a few thousandths of a percent go either way, by chance.
        for title in ("q4_k_m", "q4_k_m, calibrated", "q5_k_m, calibrated", "q6_k", "q6_k, calibrated"):
            theirs = f"{title.split(',')[0]} of llama.cpp"
            check(f"{title} costs no more than llama.cpp's", increase[title] <= increase[theirs])
    print("all bounds hold" if failures == 0 else f"{failures} bounds do not hold")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
