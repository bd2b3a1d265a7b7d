"""lm-evaluation-harness against `serve`; see the script beside this file."""
import json
import pathlib
import subprocess
import sys
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager
from served import make_model, served

TOKENS = 40
TASK = """
task: sentences
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: ["\\n", "###"], max_gen_toks: {tokens}, do_sample: false, temperature: 0.0}}
filter_list:
  - name: stripped
    filter: [{{function: remove_whitespace}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def questions():
    """Beginnings of the sentences that the model has learnt, each with all ends: it knows some."""
    return [{"prompt": f"The {a} {b} the", "completion": f"{c} at the {d}."}
            for a in ("cat", "dog", "hen", "fox") for b in ("saw", "met")
            for c in ("mouse", "goose", "horse") for d in ("gate", "café", "pond 🐸", "barn")]


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as name:
        folder = pathlib.Path(name)
        model = make_model(program, folder)
        file = folder / "questions.jsonl"
        file.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions()), encoding="utf8")
        (folder / "tasks").mkdir()
        (folder / "tasks" / "sentences.yaml").write_text(TASK.format(file=file, tokens=TOKENS), encoding="utf8")
        said = subprocess.run([program, "evaluate", "--model", model, "--data", file, "--exact-match", "--dtype", "fp32",
                               "--max-tokens", str(TOKENS), "--json"], check=True, capture_output=True, text=True)
        here = json.loads(said.stdout)
        with served(program, "--parallel", "8", "--context", "256", model=model) as url:
            results = lm_eval.simple_evaluate(
                model="local-completions",
                model_args={"model": model.name, "base_url": f"{url}/v1/completions", "tokenizer_backend": None,
                            "tokenized_requests": False, "num_concurrent": 8, "max_retries": 1},
                tasks=["sentences"], task_manager=TaskManager(include_path=str(folder / "tasks")), log_samples=False)
        there = results["results"]["sentences"]["exact_match,stripped"]
    own = here["exact_match"]
    print(f"evaluate --exact-match {own:.6f}, lm-evaluation-harness through serve {there:.6f}, {len(questions())} questions")
    sys.exit(0 if abs(own - there) < 1e-9 and 0 < own < 1 else 1)


main()
