"""The program under attack, what it is run on, and what it must never do."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

# What no message may hold: control characters but the end of a line (and what redraws one).
RAW = re.compile(rb'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]')


class Failure(Exception):
    """The program did what it must not do."""


class Outcome:
    def __init__(self, arguments, code, out, err):
        self.arguments, self.code, self.out, self.err = arguments, code, out, err

    def text(self):
        return self.err.decode('utf-8', 'replace')


class Program:
    def __init__(self, path, work, seconds):
        self.path, self.work, self.seconds = Path(path).resolve(), Path(work), seconds
        strings = subprocess.run(['grep', '-c', '__asan_init', str(self.path)], capture_output=True)
        self.sanitized = strings.stdout.strip() not in (b'', b'0')
        self.shim = None

    def environment(self, more=None):
        environment = {'PATH': os.environ['PATH'], 'HOME': str(self.work), 'LC_ALL': 'C.UTF-8',
                       'TMPDIR': str(self.work),
                       'ASAN_OPTIONS': 'detect_leaks=0:allocator_may_return_null=0:'
                                       'verify_asan_link_order=0:abort_on_error=1',
                       'UBSAN_OPTIONS': 'halt_on_error=1:print_stacktrace=1'}
        environment.update(more or {})
        if self.shim and more and any(key.startswith('ATTACK_') for key in more):
            environment['LD_PRELOAD'] = str(self.shim)
        return environment

    def limits(self, file_bytes=None, memory=4 << 30):
        def apply():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if not self.sanitized:  # which reserves terabytes of addresses
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        return apply

    def start(self, arguments, more=None, **how):
        how.setdefault('stdin', subprocess.DEVNULL)
        how.setdefault('stdout', subprocess.PIPE)
        how.setdefault('stderr', subprocess.PIPE)
        how.setdefault('preexec_fn', self.limits())
        return subprocess.Popen([str(self.path), *map(str, arguments)], cwd=self.work,
                                env=self.environment(more), **how)

    def finish(self, process, arguments, codes):
        try:
            out, err = process.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failure(f'it did not end within {self.seconds} s') from None
        outcome = Outcome(arguments, process.returncode, out or b'', err or b'')
        self.judge(outcome, codes)
        return outcome

    def run(self, arguments, more=None, codes=(0, 1, 2), **how):
        return self.finish(self.start(arguments, more, **how), arguments, codes)

    @staticmethod
    def judge(outcome, codes):
        err = outcome.err
        if b'Sanitizer' in err or b'runtime error' in err:
            raise Failure('a sanitizer reported: ' + outcome.text()[-1500:])
        if outcome.code < 0:
            raise Failure(f'it was ended by signal {-outcome.code}: {outcome.text()[-300:]}')
        if b'a defect in the program' in err:
            raise Failure('it calls that a defect: ' + outcome.text()[:300])
        if RAW.search(err):
            raise Failure(f'a message holds raw control characters: {err[:300]!r}')
        if outcome.code in (1, 2) and len(err) > 16384:
            raise Failure(f'a failure takes {len(err)} bytes to say')
        if outcome.code not in codes:
            raise Failure(f'it ended with {outcome.code}, not one of {codes}: {outcome.text()[:300]}')


WORDS = ('the a fox hen dog king river stone tree house old small red blue sings sees finds walks '
         'to and in under over with of not is was day night').split()


def words(rng, count):
    return ' '.join(rng.choice(WORDS) for _ in range(count))


class Subjects:
    """A model, a tokenizer, an adapter, data and a run, made by the program itself."""

    shape = ['--model', 'tiny', '--hidden-size', 16, '--intermediate-size', 16, '--layers', 2,
             '--heads', 2, '--kv-heads', 1, '--experts', 4, '--experts-per-token', 2]
    steps = 6

    def __init__(self, program, seed):
        self.program, self.root = program, program.work / 'subjects'
        self.root.mkdir(parents=True)
        rng = random.Random(seed)
        self.data = self.root / 'rows.jsonl'
        self.data.write_text(''.join(json.dumps({'text': words(rng, 12)}) + '\n' for _ in range(40)))
        self.text = self.root / 'text.txt'
        self.text.write_text('\n'.join(words(rng, 10) for _ in range(300)))
        self.messages = self.root / 'chat.jsonl'
        self.messages.write_text(''.join(
            json.dumps({'messages': [{'role': 'user', 'content': words(rng, 4)},
                                     {'role': 'assistant', 'content': words(rng, 4)}]}) + '\n'
            for _ in range(10)))
        self.pairs = self.root / 'pairs.jsonl'
        self.pairs.write_text(''.join(
            json.dumps({'prompt': words(rng, 4), 'chosen': words(rng, 3), 'rejected': words(rng, 3)})
            + '\n' for _ in range(10)))
        self.tokenizer = self.root / 'tok'
        self.must(['tokenizer', 'train', '--data', self.text, '--vocab-size', 300, '--out',
                   self.tokenizer])
        self.run = self.root / 'run'
        self.must(self.training(self.run))
        self.model = self.root / 'model'
        shutil.copytree((self.run / 'checkpoints' / 'latest').resolve(), self.model)
        for name in ('optimizer.safetensors', 'state.json', 'manifest.json'):
            (self.model / name).unlink(missing_ok=True)
        self.tuned = self.root / 'tuned'
        self.must(['finetune', '--model', self.model, '--data', self.data, '--out', self.tuned,
                   '--iters', 2, '--rank', 2, '--targets', 'all', '--batch-size', 2, '--context', 16,
                   '--warmup', 1, '--sample-tokens', 0, '-t', 1, '--device', 'cpu'])
        self.adapter = self.root / 'adapter'
        shutil.copytree((self.tuned / 'checkpoints' / 'latest').resolve(), self.adapter)
        for name in ('optimizer.safetensors', 'state.json', 'manifest.json'):
            (self.adapter / name).unlink(missing_ok=True)
        self.yaml = self.root / 'flags.yaml'
        dump = self.must(self.training(self.root / 'never') + ['--dump-config'])
        self.yaml.write_bytes(dump.out)
        self.final = results_of(self.run)

    def must(self, arguments):
        outcome = self.program.run(arguments)
        if outcome.code != 0:
            raise SystemExit(f'attack: cannot make what is to be attacked: {outcome.text()}')
        return outcome

    def training(self, out):
        return ['pretrain', *self.shape, '--tokenizer', self.tokenizer, '--data', self.data, '--out',
                out, '--iters', self.steps, '--batch-size', 2, '--context', 16, '--warmup', 1,
                '--log-every', 1, '--save-every', 1, '--keep-last', 3, '--sample-tokens', 0, '-t', 1,
                '--device', 'cpu', '--dtype', 'fp32']

    def start_over(self, name):
        """An empty place for a run."""
        path = self.program.work / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        return path


def results_of(run):
    """What a run computed: hashes of its last checkpoint, and its metrics, without any times."""
    last = (run / 'checkpoints' / 'latest').resolve()
    found = {name: hashlib.sha256((last / name).read_bytes()).hexdigest()
             for name in ('model.safetensors', 'optimizer.safetensors')}
    state = json.loads((last / 'state.json').read_text())
    state.pop('seconds')
    found['state'] = state
    timed = ('tok_per_s', 'it_per_s', 'peak_bytes', 'seconds')
    found['metrics'] = [{key: value for key, value in json.loads(line).items() if key not in timed}
                        for line in (run / 'metrics.jsonl').read_text().splitlines()]
    return found


def require_same(found, expected):
    for key, value in expected.items():
        if found[key] != value:
            raise Failure(f'after the attack the {key} of the run differ from the undisturbed run\'s')


def end_signal(code):
    return signal.Signals(-code).name if code < 0 else str(code)
