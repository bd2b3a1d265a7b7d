"""This program's server and llama.cpp's on one GGUF file, both asked by `mixtral bench serve`. scripts/bench_serve calls it.

Usage: serve.py PROGRAM LLAMA_SERVER DIR [--clients 1 8 32] [--types q8_0 q4_0] [--rounds N] [--threads N]
DIR keeps the models. In each round the two servers are started one after the other and asked the same prompts by the same
number of clients; the medians count. Both are given room for the same contexts, and neither finds a prompt in its cache.
"""
import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

from seed_models import seed_model

CONTEXT = 512  # tokens of a request


@contextlib.contextmanager
def running(command, port):
    """A server that is ready. What it says is kept, and shown where it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf8") as log:
        def said():
            log.seek(0)
            return log.read()[-2000:]

        server = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            for _ in range(600):
                if server.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with {server.returncode}:\n{said()}")
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
                time.sleep(0.2)
            else:
                raise SystemExit(f"{command[0]} was not ready within two minutes:\n{said()}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(program, url, clients, requests, seed):
    done = subprocess.run([program, "bench", "serve", "--url", url, "--clients", str(clients), "--requests", str(requests),
                           "--warmup", str(min(clients, 4)), "--prompt-tokens", "32-96", "--max-tokens", "32-96",
                           "--ignore-eos", "--seed", str(seed), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench serve: {done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("llama")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--types", nargs="*", default=["q8_0", "q4_0"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    options = parser.parse_args()

    def servers(model, clients, port):
        yield "mixtral", [options.program, "serve", "--model", model, "--port", port, "--context", CONTEXT, "--parallel", clients,
                          "--device", "cpu", "--threads", options.threads]
        yield "llama.cpp", [options.llama, "--model", model, "--host", "127.0.0.1", "--port", port, "--ctx-size",
                            CONTEXT * clients, "--parallel", clients, "--threads", options.threads, "--threads-batch",
                            options.threads]

    print("| type | clients | server | tok/s | first token p50, p99 ms | a token p50, p99 ms | ratio |\n|---|---|---|---|---|---|---|")
    for kind in options.types:
        model = seed_model(options.program, options.folder, kind)
        for clients in options.clients:
            results = {}
            for round_ in range(options.rounds):
                port = free_port()
                for name, command in servers(model, clients, port):
                    with running(command, port) as url:
                        figures = measure(options.program, url, clients, options.requests * clients, round_ + 1)
                    if figures["errors"] or figures["answered"] != options.requests * clients:
                        raise SystemExit(f"{name}: {figures['answered']} answered, errors {figures['errors']}")
                    results.setdefault(name, []).append(figures)

            def median(name, *keys):
                values = []
                for figures in results[name]:
                    for key in keys:
                        figures = figures[key]
                    values.append(figures)
                return statistics.median(values)
            for name in results:
                ratio = median("mixtral", "tok_per_s") / median(name, "tok_per_s")
                print(f"| {kind} | {clients} | {name} | {median(name, 'tok_per_s'):.1f} | "
                      f"{median(name, 'first_token_ms', 'p50'):.0f}, {median(name, 'first_token_ms', 'p99'):.0f} | "
                      f"{median(name, 'time_per_token_ms', 'p50'):.1f}, {median(name, 'time_per_token_ms', 'p99'):.1f} | "
                      f"{ratio:.2f} |", flush=True)


main()
