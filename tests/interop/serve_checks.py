"""What official clients get from `serve`; see the script beside this file."""
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import anthropic
import openai
from prometheus_client.parser import text_string_to_metric_families
from served import free_port, make_model, served

KEY = "interop-key"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class World:
    """The server and its clients."""

    def __init__(self, program, url, folder):
        self.program, self.url, self.folder = program, url, folder
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=30)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=30)
        self.model = self.openai.models.list().data[0].id

    def complete(self, prompt, **more):
        return self.openai.completions.create(model=self.model, prompt=prompt, **{"temperature": 0, "max_tokens": 24, **more})

    def chat(self, text, **more):
        return self.openai.chat.completions.create(model=self.model, messages=[{"role": "user", "content": text}],
                                                   **{"temperature": 0, "max_tokens": 24, **more})


def same(got, want):
    assert got == want, f"{got!r}, not {want!r}"


@check
def completions_alone_and_together_are_equal(w):
    prompts = [f"The {a} {b}" for a in ("cat", "dog", "hen", "fox") for b in ("saw", "met")]
    alone = [w.complete(p).choices[0].text for p in prompts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        same(list(pool.map(lambda p: w.complete(p).choices[0].text, prompts)), alone)
    same([c.text for c in w.complete(prompts).choices], alone)


@check
def streams_carry_the_whole_text_and_usage(w):
    want = w.chat("The cat")
    parts = list(w.chat("The cat", stream=True, stream_options={"include_usage": True}))
    same("".join(c.delta.content or "" for p in parts for c in p.choices), want.choices[0].message.content)
    same(parts[-1].usage.total_tokens, want.usage.total_tokens)


@check
def log_probabilities_of_an_echoed_text_are_those_of_its_generation(w):
    made = w.complete("The cat", max_tokens=8, logprobs=1).choices[0]
    ids = [256, *"The cat".encode(), *made.text.encode()[:8]]
    echoed = w.complete(ids, max_tokens=0, echo=True, logprobs=1).choices[0].logprobs
    same(echoed.token_logprobs[0], None)
    for got, want in zip(echoed.token_logprobs[8:], made.logprobs.token_logprobs):
        assert abs(got - want) < 1e-4, f"{got}, not {want}"


@check
def seeds_repeat_and_answers_differ(w):
    texts = [c.message.content for c in w.chat("The", n=4, seed=7, temperature=1.5).choices]
    same([c.message.content for c in w.chat("The", n=4, seed=7, temperature=1.5).choices], texts)
    assert len(set(texts)) > 1, texts


@check
def schemas_and_tools_are_kept(w):
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    answer = w.chat("Where?", temperature=1, seed=1, max_tokens=100,
                    response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}})
    assert json.loads(answer.choices[0].message.content)["city"] in ("Oslo", "Rome")
    tool = {"type": "function", "function": {"name": "travel", "parameters": schema}}
    call = w.chat("Go", tools=[tool], tool_choice="required", temperature=1, seed=1, max_tokens=200).choices[0].message.tool_calls[0]
    same(call.function.name, "travel")
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


@check
def messages_are_as_chat_says(w):
    want = w.chat("The cat").choices[0].message.content
    got = w.anthropic.messages.create(model=w.model, max_tokens=24, messages=[{"role": "user", "content": "The cat"}],
                                      extra_body={"temperature": 0})
    same(got.content[0].text, want)


@check
def errors_are_those_that_the_clients_know(w):
    for kind, call in ((openai.NotFoundError, lambda: w.openai.completions.create(model="nope", prompt="x")),
                       (openai.BadRequestError, lambda: w.complete("x", temperature=-1)),
                       (openai.BadRequestError, lambda: w.complete("x" * 5000)),
                       (openai.AuthenticationError, lambda: openai.OpenAI(base_url=f"{w.url}/v1", api_key="no", max_retries=0).models.list())):
        try:
            call()
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


@check
def metrics_count_the_tokens(w):
    def tokens():
        request = urllib.request.Request(f"{w.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        families = text_string_to_metric_families(urllib.request.urlopen(request).read().decode())
        return {s.name: s.value for f in families for s in f.samples}["mixtral_generated_tokens_total"]
    before = tokens()
    w.complete("The", max_tokens=9, logit_bias={"257": -100})
    same(tokens() - before, 9)


@check
def the_text_is_that_of_generate(w):
    made = json.loads(subprocess.run([w.program, "generate", "--model", w.folder, "--prompt", "The cat", "--temp", "0", "-n", "24", "--dtype",
                                      "fp32", "--json"], check=True, capture_output=True, text=True).stdout)
    same(w.complete("The cat").choices[0].text, made["text"])


@check
def a_server_that_still_loads_ends_when_told_to(w):
    port = free_port()
    server = subprocess.Popen([w.program, "serve", "--model", "seed", "--random-weights", "--tokenizer", "bytes", "--dtype", "bf16",
                               "--context", "128", "--parallel", "1", "--port", str(port), "-q"])
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                raise AssertionError("it was loaded too soon to test this")
            except urllib.error.HTTPError as error:
                same(error.code, 503)
                break
            except OSError:
                time.sleep(0.05)
        server.terminate()
        same(server.wait(5), 0)
    finally:
        server.kill()


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder = make_model(program, pathlib.Path(name))
        flags = ("--api-key", KEY, "--metrics", "--context", "1024", "--parallel", "8")
        with served(program, *flags, model=folder) as url:
            world = World(program, url, folder)
            for function in CHECKS:
                name = function.__name__.replace("_", " ")
                try:
                    function(world)
                    print(f"ok    {name}")
                except Exception as error:  # each is said, and the rest still run
                    failed += 1
                    print(f"FAIL  {name}: {type(error).__name__}: {str(error)[:300]}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} hold")
    sys.exit(failed > 0)


main()
