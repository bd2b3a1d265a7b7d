"""Compares adapters with PEFT in both directions (run by the script `peft` beside this file).

One process drives; for each peer it starts this file again with --peer, and with that peer's packages first
in PYTHONPATH. A peer first writes adapters with random values for every combination, reads them again and computes
their logits; then it reads the adapters that were trained here. Each line is a combination and the largest
difference of the logits, by the largest logit.
"""
import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TOLERANCE = 2e-5
TOKENS = [1, 77, 300, 5, 12, 250, 9, 33, 101, 64, 7, 299]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["w1", "w2", "w3"]
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"

# (target_modules, target_parameters) of PEFT's configurations.
MODULE_TARGETS = [
    (ATTENTION, []),
    (["q_proj", "lm_head"], []),
    (["gate"], []),
    (["w2"], []),
    (["q_proj"] + EXPERTS, []),
    (ATTENTION + ["gate"] + EXPERTS, []),
    ("all-linear", []),
]
PARAMETER_TARGETS = [
    (["q_proj"], ["gate.weight"]),
    ([], [GATE_UP]),
    ([], [DOWN]),
    (["v_proj"], [GATE_UP, DOWN]),
    ([], ["layers.1." + GATE_UP, DOWN]),
    (["w2"], [GATE_UP]),
    (["w1", "w3"], [DOWN]),
    (["gate", "w2"], ["layers.0." + GATE_UP]),
]
# Patterns by what they are looked up under: names of transformers 5, of transformers 4, and of either.
PATTERNS_5 = [
    {"gate_up_proj": 3},
    {"experts.down_proj": 2},
    {r"model.layers.1.mlp.experts.(gate_up|down)_proj": 5},
    {r".*\.mlp.experts.gate_up_proj": 6, "gate_up_proj": 2},
    {"gate.weight": 2, "q_proj": 3},
    {"gate": 3, "experts": 2},  # these match no parameter
]
PATTERNS_4 = [
    {"w1": 3},
    {"w2": 2, "block_sparse_moe.gate": 3},
    {r"layers.1.block_sparse_moe.experts.[0-9]+.(w1|w3)": 5},
    {"gate": 3, "q_proj": 2},
]
PATTERNS_BOTH = [{}, {"^model.layers.0.self_attn.q_proj": 2, "v_proj": 6}]

# Flags of adapters that are trained here.
TRAINED_TARGETS = [
    "attention", "gate", "experts", "w1", "w2", "w3", "w1,w3", "w1,w2", "all", "all,lm_head", "gate_up_proj",
    "down_proj", "gate_up_proj,down_proj", "gate_up_proj,w2", "down_proj,w1,w3", "down_proj,w3",
]
PACKED = ("gate_up_proj", "down_proj")


def trained_options(targets):
    names = {"attention": "q_proj", "experts": "w1", "all": "gate", "all,lm_head": "w2"}
    one = names.get(targets, targets.split(",")[0])
    options = [[], ["--rslora"], ["--target-ranks", one + "=2"], ["--target-alphas", one + "=3"],
               ["--target-ranks", one + "=2", "--rslora"], ["--num-layers", "1"], ["--scale", "1.5"]]
    if any(t in targets for t in ("experts", "all", "w1", "w2", "w3")):
        options += [["--experts", "1,3"], ["--experts", "0", "--rslora"]]
    if targets in ("all", "gate_up_proj"):
        options += [["--dropout", "0.1"]]
    if targets in ("experts", "all"):
        options += [["--target-ranks", "w1=2,w3=6", "--scale", "1.5"],
                    ["--target-ranks", "w1=2,w2=3,w3=6", "--scale", "1.5", "--rslora"]]
    return options


def scales_differ(targets, options):
    """Whether w1 and w3 are tuned with two scales, which PEFT cannot say of one packed parameter."""
    names = set(targets.split(","))
    both = names & {"experts", "all"} or {"w1", "w3"} <= names
    flags = " ".join(options)
    return bool(both) and ("w1=" in flags or "w3=" in flags) and "--scale" not in flags


class Peer:
    """A process with a peer's packages."""

    def __init__(self, name, path, base, work):
        self.name, self.work = name, work
        environment = dict(os.environ, PYTHONPATH=str(path or ""))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--peer", str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment)
        self.versions = json.loads(self.process.stdout.readline())

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def serve_peer(base):
    """Answers requests, a JSON line each: {"write": directory, "config": ...} or {"read": directory}."""
    import warnings

    import numpy as np
    import peft
    import torch
    import transformers

    answers = sys.stdout
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if hasattr(transformers.logging, "disable_progress_bar"):
        transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)

    def answer(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    def model():
        return transformers.AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32,
                                                                 attn_implementation="eager")

    def logits(wrapped):
        with torch.no_grad():
            return wrapped.eval()(torch.tensor([TOKENS])).logits[0].numpy()

    answer(peft=peft.__version__, transformers=transformers.__version__)
    for line in sys.stdin:
        request = json.loads(line)
        written = False
        try:
            if "write" in request:
                torch.manual_seed(7)
                config = peft.LoraConfig(**request["config"])
                wrapped = peft.get_peft_model(model(), config)
                wrapped.save_pretrained(request["write"])
                written = True
            # What a file means is what PEFT reads from it: it sorts the patterns when it writes them, and
            # the first that matches counts.
            wrapped = peft.PeftModel.from_pretrained(model(), request.get("read") or request["write"])
            np.save(request["logits"], logits(wrapped))
            answer(ok=True)
        except Exception as error:
            answer(ok=False, written=written, error=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")


class Comparison:
    def __init__(self, program, base, work):
        self.program, self.base, self.work = program, base, work
        self.count = self.refused = self.wrong = 0
        self.largest = 0.0
        self.plain = self.ours(None)

    def run(self, *arguments):
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed")
        return done

    def ours(self, adapter):
        from safetensors.numpy import load_file
        file = self.work / "ours.safetensors"
        more = ["--adapter", adapter] if adapter else []
        self.run("generate", "--model", self.base, *more, "--method", "generate_raw", "--ids",
                 ",".join(map(str, TOKENS)), "--out", file, "--dtype", "fp32", "--threads", "1", "-q")
        return load_file(str(file))["logits"].reshape(len(TOKENS), -1)

    def line(self, what, problem=None, difference=None, refusal=None):
        self.count += 1
        if problem:
            self.wrong += 1
            print(f"WRONG  {what}: {problem}", flush=True)
        elif refusal:
            self.refused += 1
            print(f"refused  {what}: {refusal}", flush=True)
        else:
            self.largest = max(self.largest, difference)
            print(f"{difference:.1e}  {what}", flush=True)

    def compare(self, what, ours, theirs):
        import numpy as np
        size = float(np.abs(theirs).max())
        if float(np.abs(theirs - self.plain).max()) < 1e-3 * size:
            return self.line(what, problem="the adapter changes nothing")
        difference = float(np.abs(ours - theirs).max()) / size
        if not difference <= TOLERANCE:
            return self.line(what, problem=f"logits differ by {difference:.1e}")
        self.line(what, difference=difference)

    def read_from(self, peer, modules, parameters, patterns, rslora):
        import numpy as np
        config = {"r": 4, "lora_alpha": 6, "use_rslora": rslora, "init_lora_weights": False,
                  "target_modules": modules}
        if parameters:
            config["target_parameters"] = parameters
        if patterns:
            config["rank_pattern"] = patterns
            config["alpha_pattern"] = {key: value + 4 for key, value in patterns.items()}
        said = {key: value for key, value in config.items()
                if key not in ("r", "lora_alpha", "init_lora_weights") and value}
        what = f"{peer.name} → here: {json.dumps(said)}"
        directory = self.work / f"{peer.name.replace(' ', '-')}-{self.count}"
        logits = self.work / "theirs.npy"
        reply = peer.ask(write=str(directory), config=config, logits=str(logits))
        if not reply["ok"] and not reply["written"]:
            return self.line(what, problem="PEFT cannot make it: " + reply["error"])
        try:
            ours = self.ours(directory)
        except RuntimeError as error:
            if reply["ok"]:
                return self.line(what, problem=str(error))
            return self.line(what, refusal="by both; PEFT says " + reply["error"])
        if not reply["ok"]:
            return self.line(what, problem="read here, but PEFT says " + reply["error"])
        self.compare(what, ours, np.load(logits))

    def write_for(self, peers, targets, options):
        import numpy as np
        what = " ".join(["--targets", targets, *options])
        run = self.work / f"run-{self.count}"
        self.run("finetune", "--model", self.base, "--tokenizer", "bytes", "--data", self.work / "train.jsonl",
                 "--out", run, "--iters", "6", "--batch-size", "4", "--context", "32", "--eval-every", "0",
                 "--threads", "1", "--lr", "3e-2", "--warmup", "0", "--rank", "4", "-q", "--targets", targets,
                 *options)
        adapter = run / "checkpoints" / "step-00000006"
        ours = self.ours(adapter)
        for peer in peers:
            four = peer.versions["transformers"].startswith("4")
            if four and any(name in targets for name in PACKED):
                continue
            said = f"here → {peer.name}: {what}"
            logits = self.work / "theirs.npy"
            reply = peer.ask(read=str(adapter), logits=str(logits))
            if not four and scales_differ(targets, options):
                if reply["ok"]:
                    self.line(said, problem="PEFT does not refuse two scales in one parameter")
                else:
                    self.line(said, refusal=reply["error"])
            elif not reply["ok"]:
                self.line(said, problem=reply["error"])
            else:
                self.compare(said, ours, np.load(logits))


def make_base(directory):
    import torch
    import transformers
    torch.manual_seed(3)
    config = transformers.MixtralConfig(
        vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        initializer_range=0.2, sliding_window=None, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    transformers.MixtralForCausalLM(config).save_pretrained(directory)


def main(options):
    with tempfile.TemporaryDirectory(prefix="peft-") as name:
        work = pathlib.Path(name)
        base = work / "base"
        make_base(base)
        lines = [{"text": text} for text in ("a cat sat on a mat", "the sun is warm today", "two and two is four",
                                             "rain fell on the hills", "she read a long book", "an owl calls at night")]
        (work / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        five = Peer("transformers 5", None, base, work)
        four = Peer("transformers 4", options.transformers_4, base, work)
        old = Peer("PEFT 0.18", options.peft_0_18, base, work)
        for peer in (five, four, old):
            print(f"{peer.name}: PEFT {peer.versions['peft']}, transformers {peer.versions['transformers']}")
        comparison = Comparison(options.program, base, work)
        rslora = (False, True)
        for (modules, parameters), patterns, flag in itertools.product(
                MODULE_TARGETS + PARAMETER_TARGETS, PATTERNS_BOTH + PATTERNS_5, rslora):
            comparison.read_from(five, modules, parameters, patterns, flag)
        for (modules, parameters), patterns, flag in itertools.product(
                MODULE_TARGETS, PATTERNS_BOTH + PATTERNS_4, rslora):
            comparison.read_from(four, modules, parameters, patterns, flag)
        for (modules, parameters), patterns, flag in itertools.product(
                PARAMETER_TARGETS[:5], PATTERNS_BOTH + PATTERNS_5, rslora):
            comparison.read_from(old, modules, parameters, patterns, flag)
        for targets in TRAINED_TARGETS:
            for more in trained_options(targets):
                comparison.write_for((five, four), targets, more)
        agreed = comparison.count - comparison.refused - comparison.wrong
        print(f"{comparison.count} combinations: {agreed} agree, to {comparison.largest:.1e} of the largest logit; "
              f"{comparison.refused} refused, as they must be; {comparison.wrong} wrong")
        return 1 if comparison.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="BASE")
    parser.add_argument("--program")
    parser.add_argument("--transformers-4")
    parser.add_argument("--peft-0-18")
    chosen = parser.parse_args()
    if chosen.peer:
        serve_peer(chosen.peer)
    else:
        sys.exit(main(chosen))
