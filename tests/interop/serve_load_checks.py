"""What `serve` bears; see the script beside this file."""
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from urllib.parse import urlparse

from served import served

CLIENTS, PEERS, BODY = 64, 64, 64 << 20
GROWTH = 1.05  # of memory from the first third of the test to its end
GAIN = 4.0     # tokens of 64 clients to those of one

GARBAGE = [
    b"\x00\xff\x13 nothing\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{\"prompt\"",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60\r\n\r\n" + b"[" * 60,
    b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 44\r\n\r\n"
    b'{"prompt": "x", "max_tokens": 5, "bogus": 1}',
]


class Attack:
    """Threads that trouble a server until they are told to stop."""

    def __init__(self, url):
        parts = urlparse(url)
        self.address = (parts.hostname, parts.port)
        self.stop = threading.Event()
        self.counts = {"garbage": 0, "refused bodies": 0, "slow bytes": 0}
        self.faults = []
        self.threads = [threading.Thread(target=work) for work in (self.garbage, self.slow, self.bodies)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def connect(self):
        return socket.create_connection(self.address, timeout=20)

    def garbage(self):
        choose = random.Random(1)
        while not self.stop.wait(0.05):
            data = choose.choice(GARBAGE)
            try:
                with self.connect() as peer:
                    peer.sendall(data[: choose.randrange(1, len(data) + 1)] if choose.random() < 0.3 else data)
                    peer.settimeout(0.2)
                    answer = peer.recv(4096)
                    if answer.startswith(b"HTTP/1.1 5"):
                        self.faults.append(f"{data[:80]!r} was answered {answer[:80]!r}")
            except OSError:
                pass  # the server may close, and need not answer half a request
            self.counts["garbage"] += 1

    def slow(self):
        peers = []
        line = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"a" * 4096
        sent = [0] * PEERS
        while not self.stop.wait(1):
            while len(peers) < PEERS:
                peers.append(self.connect())
                sent[len(peers) - 1] = 0
            for i, peer in enumerate(peers):
                try:
                    peer.send(line[sent[i] % len(line):][:1])
                    sent[i] += 1
                    self.counts["slow bytes"] += 1
                except OSError:  # the server has had enough of it
                    peer.close()
                    peers[i] = self.connect()
                    sent[i] = 0
        for peer in peers:
            peer.close()

    def bodies(self):
        part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        while not self.stop.wait(2):
            answer = b""
            with self.connect() as peer:
                try:
                    peer.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                                 b"Transfer-Encoding: chunked\r\n\r\n")
                    for _ in range(BODY // 0x10000):
                        peer.sendall(part)
                except OSError:
                    pass  # refused before its end
                try:
                    answer = peer.recv(4096)
                except OSError:
                    pass
            if answer and not answer.startswith(b"HTTP/1.1 413"):
                self.faults.append(f"a body of 64 MiB was answered {answer[:80]!r}")
            self.counts["refused bodies"] += 1


def process_of(url):
    """The server's process, by the port that it listens at."""
    port = urlparse(url).port
    for line in subprocess.run(["ps", "-eo", "pid,args"], check=True, capture_output=True, text=True).stdout.splitlines():
        pid, _, rest = line.strip().partition(" ")
        if f"--port {port}" in rest and " serve " in rest:
            return int(pid)
    raise SystemExit("the server's process was not found")


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf8") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def load(program, url, clients, seconds, *more):
    result = subprocess.run([program, "bench", "serve", "--url", url, "--clients", str(clients), "--seconds", str(seconds),
                             "--prompt-tokens", "lognormal:64:0.8:900", "--max-tokens", "16-64", "--ignore-eos", "--temp", "1",
                             "--json",
                             *more], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"bench serve: {result.stderr}")
    return json.loads(result.stdout)


def line(name, figures):
    first, token = figures["first_token_ms"], figures["time_per_token_ms"]
    print(f"{name}: {figures['tok_per_s']:.1f} tok/s, {figures['answered']} answered, {figures['left']} left, "
          f"first token p50 {first['p50']:.0f} ms, p99 {first['p99']:.0f} ms, "
          f"a token p50 {token['p50']:.1f} ms, p99 {token['p99']:.1f} ms, errors {figures['errors']}", flush=True)


def main():
    program, seconds = sys.argv[1], float(sys.argv[2])
    faults = []
    with served(program, "--random-weights", "--tokenizer", "bytes", "--context", "1024", "--parallel", str(CLIENTS),
                "--metrics", model="small") as url:
        pid = process_of(url)
        one = [load(program, url, 1, max(5.0, seconds / 8))]
        line("1 client", one[0])
        memory = []
        done = threading.Event()

        def watch():
            while not done.wait(seconds / 60):
                memory.append(resident(pid))

        watcher = threading.Thread(target=watch)
        with Attack(url) as attack:
            watcher.start()
            many = load(program, url, CLIENTS, seconds, "--leave", "0.2", "--seed", "2", "--warmup", str(CLIENTS))
        done.set()
        watcher.join()
        line(f"{CLIENTS} clients, attacked", many)
        print(f"beside them: {attack.counts}")
        quiet = load(program, url, CLIENTS, max(10.0, seconds / 4), "--seed", "3", "--warmup", str(CLIENTS))
        line(f"{CLIENTS} clients alone", quiet)
        # Again, since the machine may be busier at one time than at another; its best counts.
        one.append(load(program, url, 1, max(5.0, seconds / 8), "--seed", "4"))
        line("1 client", one[1])
        faults += attack.faults[:3]
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status != 200:
                faults.append(f"/health says {answer.status}")
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            left = [text for text in answer.read().decode().splitlines()
                    if text.split()[0] in ("mixtral_answers_running", "mixtral_requests_waiting") and text.split()[1] != "0"]
        if left:
            faults.append(f"something still runs: {left}")
    third = len(memory) // 3
    before, after = max(memory[:third]), max(memory[-third:])
    gain = quiet["tok_per_s"] / max(figures["tok_per_s"] for figures in one)
    tenths = [memory[i * (len(memory) - 1) // 9] for i in range(10)]
    print(f"memory while attacked: {' '.join(f'{size:.1f}' for size in tenths)} MiB; gain {gain:.2f}")
    for name, figures in (("attacked", many), ("alone", quiet), ("one", one[0]), ("one", one[1])):
        if figures["errors"]:
            faults.append(f"{name}: {figures['errors']}")
    if after > GROWTH * before:
        faults.append(f"memory grew from {before:.1f} to {after:.1f} MiB")
    if gain < GAIN:
        faults.append(f"{CLIENTS} clients get {gain:.2f} times the tokens of one, less than {GAIN}")
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


main()
