"""llama.cpp's speed on this CPU, through llama-cpp-python, for comparison with `mixtral bench`.

Usage: llama_cpu.py FILE.gguf decode|prefill|start [--batch B] [--context T] [--tokens N] [--threads N]
decode: N tokens of each of B sequences, after a prompt of T tokens. prefill: the prompt alone, in one call.
start: seconds from the process's start to the logits of a prompt of T tokens.
Tokens are made up and none are drawn, which spares llama.cpp the sampling. Prints one JSON object.
"""
import argparse
import ctypes
import json
import os
import time

import llama_cpp as llama


def seconds_since_start():
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Model:
    def __init__(self, path, sequences, context, batch, threads):
        self.quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self.quiet, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx = sequences * context
        settings.n_batch = settings.n_ubatch = batch
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, settings)
        self.batch = llama.llama_batch_init(batch, 0, 1)

    def run(self, tokens):
        """tokens: (sequence, position, whether its logits are needed) of each."""
        self.batch.n_tokens = len(tokens)
        for i, (sequence, position, logits) in enumerate(tokens):
            self.batch.token[i] = 300 + (sequence * 131 + position * 37) % 30000
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = logits
        if llama.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_get_logits_ith(self.context, ctypes.c_int32(len(tokens) - 1))

    def prompt(self, sequence, length):
        self.run([(sequence, i, i == length - 1) for i in range(length)])

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("work", choices=["decode", "prefill", "start"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    model = Model(options.file, options.batch, options.context + options.tokens + 8,
                  max(options.context, options.batch), options.threads)
    result = {"peer": "llama.cpp", "work": options.work}
    if options.work == "decode":
        for sequence in range(options.batch):
            model.prompt(sequence, options.context)
        position = options.context
        model.run([(s, position, True) for s in range(options.batch)])  # warms up
        start = time.perf_counter()
        for i in range(options.tokens):
            model.run([(s, position + 1 + i, True) for s in range(options.batch)])
        seconds = time.perf_counter() - start
        result["tok_per_s"] = options.tokens * options.batch / seconds
    else:
        model.prompt(0, options.context)
        result["first_token_s"] = seconds_since_start()
        if options.work == "prefill":
            model.clear()
            start = time.perf_counter()
            model.prompt(0, options.context)
            result["tok_per_s"] = options.context / (time.perf_counter() - start)
    print(json.dumps(result))


main()
