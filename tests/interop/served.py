"""A small random model of bytes and a server of it, for the scripts beside this file."""
import contextlib
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request


def make_model(program, folder):
    """A model that has learnt a few sentences, in folder/model."""
    config = folder / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 258, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_local_experts": 6, "num_experts_per_tok": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": False}))
    text = folder / "text.txt"
    text.write_text("".join(f"The {a} {b} the {c} at the {d}.\n" for a in ("cat", "dog", "hen", "fox") for b in ("saw", "met")
                            for c in ("mouse", "goose", "horse") for d in ("gate", "café", "pond 🐸", "barn")), encoding="utf8")
    subprocess.run([program, "pretrain", "--model", config, "--tokenizer", "bytes", "--data", text, "--out", folder / "model",
                    "--iters", "80", "--context", "128", "--batch-size", "4", "--lr", "1e-2", "--eval-every", "0",
                    "--sample-tokens", "0", "-q"], check=True)
    return folder / "model"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(program, *flags, model=None):
    """The address of a server of `model`, or of a new small one; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="served-") as name:
        folder = pathlib.Path(name)
        model = model or make_model(program, folder)
        port = free_port()
        server = subprocess.Popen([program, "serve", "--model", model, "--port", str(port), "--dtype", "fp32", *flags])
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(400):
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                try:
                    with urllib.request.urlopen(f"{url}/health", timeout=2):
                        break
                except OSError:
                    time.sleep(0.1)
            else:
                raise SystemExit("the server was not ready within 40 s")
            yield url
            if server.poll() is not None:
                raise SystemExit(f"the server ended with {server.returncode} while it was used")
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
