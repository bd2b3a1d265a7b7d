"""Writes a GGUF file in a type that this program only reads, by llama.cpp's quantization.

Usage: llama_quantize.py SOURCE.gguf OUT.gguf q2_k|q3_k_m|iq4_nl|iq4_xs
"""
import ctypes
import os
import sys

import llama_cpp as llama

source, out, kind = sys.argv[1:]
settings = llama.llama_model_quantize_default_params()
settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
settings.nthread = os.cpu_count()
if llama.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings)) != 0:
    raise SystemExit(f"llama.cpp could not write {out}")
