"""Renders templates with transformers and with the program, and compares (run by the script `templates` beside this
file): chat templates of the usual kinds, written here, and a few thousand small ones put together by chance."""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

CHATS = {
    "Mistral": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
               "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}"
               "{% endfor %}",
    "ChatML": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}"
              "{% endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tools": "{%- if tools %}\n  {{- '[TOOLS]' ~ (tools | tojson) ~ '[/TOOLS]' }}\n{%- endif %}\n"
             "{%- set ns = namespace(last=-1) %}\n{%- for m in messages %}\n  {%- if m.role == 'user' %}\n"
             "    {%- set ns.last = loop.index0 %}\n  {%- endif %}\n{%- endfor %}\n{{- ns.last }}\n"
             "{%- for m in messages if m.role != 'system' %}\n  {{- loop.index }}:{{ m.content | upper }}\n"
             "  {%- for c in m.tool_calls or [] %} {{ c.function.name }}({{ c.function.arguments | tojson(indent=2) }})\n"
             "  {%- endfor %}\n{%- endfor %}",
    "Zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
              "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n{% else %}\n"
              "{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}"
              "\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "  Hi\n"}, {"role": "assistant", "content": "Hello 'there' \"you\""},
     {"role": "user", "content": "naïve 世界 <b>&"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    [{"role": "user", "content": "w"}, {"role": "assistant", "content": None, "tool_calls": [
        {"function": {"name": "f", "arguments": {"x": 1.5, "y": [True, None], "z": {}}}}]}],
]
VALUES = ["1", "-2", "2.5", "1e20", "'aB c'", "''", "'é\\n'", "none", "true", "[3, 1, 2]", "['b', 'A']", "{'k': 1}",
          "messages", "messages[0]", "messages[0].content", "missing", "range(4)", "(1, 'x')", "'12'", "[]", "[[1], [2]]"]
FILTERS = ["upper", "lower", "title", "capitalize", "trim", "length", "list", "first", "last", "join('-')", "sort", "string",
           "int", "float", "abs", "round(1)", "tojson", "reverse | list", "default('d')", "default('d', true)", "unique | list",
           "sum", "max", "min", "map('string') | list", "select | list", "reject('none') | list", "indent(2)", "wordcount",
           "replace('a', 'z')", "batch(2) | list", "items | list", "dictsort", "center(9)", "truncate(4, true, '.')",
           "map(attribute='role') | list", "selectattr('role') | list", "format(1)", "urlencode", "slice(2) | list"]
TESTS = ["defined", "none", "string", "number", "mapping", "iterable", "sequence", "odd", "even", "true", "boolean", "integer",
         "float", "lower", "upper", "in [1, 2]", "eq 1", "sameas none", "divisibleby 2"]
METHODS = ["upper()", "strip()", "split()", "split('a')", "title()", "count('a')", "find('B')", "startswith('a')", "items()",
           "keys() | list", "get('k')", "get('n', 4)", "replace('a', 'b', 1)", "splitlines()", "isdigit()", "zfill(4)", "role"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"]


def expression(rng, depth=0):
    kind = rng.randrange(8)
    if depth > 2 or kind < 2:
        return rng.choice(VALUES)
    inner = expression(rng, depth + 1)
    if kind == 2:
        return f"({inner} | {rng.choice(FILTERS)})"
    if kind == 3:
        return f"({inner} is {rng.choice(['', 'not '])}{rng.choice(TESTS)})"
    if kind == 4:
        return f"({inner}).{rng.choice(METHODS)}"
    if kind == 5:
        return f"({inner})[{rng.choice(['0', '-1', '1:', ':2', '::-1', chr(39) + 'k' + chr(39)])}]"
    if kind == 6:
        return f"({inner} if {expression(rng, depth + 1)} else {expression(rng, depth + 1)})"
    return f"({inner} {rng.choice(OPERATORS)} {expression(rng, depth + 1)})"


def small_template(rng):
    e = expression(rng)
    return rng.choice([f"{{{{ {e} }}}}", f"  {{% if {e} %}}\nyes\n  {{% else %}}\nno\n  {{% endif %}}\n-",
                       f"{{% for x in {e} %}}{{{{ x }}}}{{{{ ',' if not loop.last }}}}{{% else %}}none{{% endfor %}}",
                       f"{{% set v %}}{{{{ {e} }}}}{{% endset %}}[{{{{ v | trim }}}}]"])


def expected(template, row):
    try:
        messages = _normalize_chat_messages(row["messages"])
        texts, _ = render_jinja_template([messages], chat_template=template, bos_token="<s>", eos_token="</s>",
                                         **{k: v for k, v in row.items() if k != "messages"})
        return texts[0]
    except Exception:  # whatever Python raises, the program must refuse as well
        return None


def rendered(program, template, rows, folder):
    file = folder / "template.json"
    file.write_text(json.dumps({"template": template, "bos_token": "<s>", "eos_token": "</s>"}))
    done = subprocess.run([program, "tokenizer", "template", "--template", file, "--jsonl"], capture_output=True,
                          input="".join(json.dumps(row) + "\n" for row in rows).encode())
    if done.returncode == 1 and not done.stdout:
        return [None] * len(rows), done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.split(b"\n") if line]
    return [line.get("text") for line in lines], " ".join(line.get("error", "") for line in lines)


def main():
    program = sys.argv[1]
    wrong, refused, total = [], 0, 0
    rng = random.Random(0)
    rows = [{"messages": m, "add_generation_prompt": g, "tools": t} for m in CONVERSATIONS for g in (True, False)
            for t in (None, [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.0]}}}])]
    with tempfile.TemporaryDirectory() as folder:
        cases = [(t, rows) for t in CHATS.values()] + [(small_template(rng), rows[8:9]) for _ in range(2000)]
        for template, inputs in cases:
            got, said = rendered(program, template, inputs, pathlib.Path(folder))
            for row, text in zip(inputs, got):
                want = expected(template, row)
                total += 1
                if text == want:
                    continue
                # Refusing what Python renders is a limit, named by the message; another text is a fault.
                if text is None and "0x" not in want:
                    refused += 1
                    print(f"refused: {template!r}: {said[:120]!r}, Python renders {want[:60]!r}")
                elif want is None or "0x" not in want:
                    wrong.append((template, text, want))
    for template, text, want in wrong[:20]:
        print(f"differs: {template!r}\n   here {text!r}\n   Python {want!r}")
    print(f"{total - len(wrong) - refused} of {total} renderings agree, {refused} are refused, {len(wrong)} differ")
    sys.exit(1 if wrong else 0)


main()
