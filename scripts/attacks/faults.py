"""Kills, signals, failing system calls, full disks, flipped bits, planted links, clocks, rivals."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import time

from rig import Failure, require_same, results_of


def resume(subjects, run, more=None, codes=(0,)):
    return subjects.program.run(['pretrain', '--resume', run], more, codes=codes)


def finish(subjects, run):
    """Brings an interrupted run to its end: by --resume, or anew where nothing was saved yet."""
    outcome = subjects.program.run(['pretrain', '--resume', run])
    if outcome.code != 0:
        if list(run.glob('checkpoints/step-*')):
            raise Failure('a run with checkpoints is not resumed: ' + outcome.text()[:400])
        subjects.program.run(subjects.training(run) + ['--overwrite'], codes=(0,))
    require_same(results_of(run), subjects.final)
    left = [path for path in run.rglob('*') if '.mixtral-tmp-' in path.name]
    if left:
        raise Failure(f'left behind: {left}')


class Kills:
    name = 'killed at any instant'
    signals = (signal.SIGKILL,)

    def __init__(self, subjects):
        self.subjects = subjects
        start = time.monotonic()
        subjects.program.run(subjects.training(subjects.start_over('timed')), codes=(0,))
        self.seconds = time.monotonic() - start

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('killed')
        for time_left in range(rng.choice([1, 1, 2, 3])):
            arguments = ['pretrain', '--resume', run] if time_left and run.exists() else (
                s.training(run) + ['--overwrite'])
            process = s.program.start(arguments, stdout=subprocess.DEVNULL)
            time.sleep(rng.random() * self.seconds * 1.1)
            which = rng.choice(self.signals)
            process.send_signal(which)
            try:
                err = process.communicate(timeout=s.program.seconds)[1]
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise Failure(f'{which.name} did not end it') from None
            self.judge(process.returncode, which, err)
        finish(s, run)

    def judge(self, code, which, err):
        if code not in (0, 1, -signal.SIGKILL):
            raise Failure(f'killed, it ended with {code}: {err[-300:]!r}')


class Signals(Kills):
    name = 'asked to stop'
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def judge(self, code, which, err):
        # Before and after training, the signal ends the process as it does any other.
        if code not in (0, 1, 128 + which, -which):
            raise Failure(f'asked to stop by {which.name}, it ended with {code}: {err[-300:]!r}')
        if b'stopped by signal' in err and code != 128 + which:
            raise Failure(f'it stopped by {which.name} with {code}')


class SystemCalls:
    name = 'failing system calls'
    not_sanitized = 'a preloaded library comes before the sanitizers\' own'
    calls = {'write': 60, 'short': 60, 'fsync': 40, 'fdatasync': 10, 'close': 60, 'rename': 40,
             'renameat2': 3, 'mkdir': 12, 'symlink': 10, 'unlink': 10, 'open': 40, 'ftruncate': 3}

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('failing')
        call = rng.choice(list(self.calls))
        self.evidence = more = {
            'ATTACK_CALL': call, 'ATTACK_AT': str(rng.randint(1, self.calls[call])),
            'ATTACK_ERRNO': str(rng.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])),
            'ATTACK_STAYS': rng.choice('01')}
        outcome = s.program.run(s.training(run), more, codes=(0, 1))
        if call == 'short' and outcome.code != 0:
            raise Failure('a short write ended it: ' + outcome.text()[-300:])
        finish(s, run)


class FullDisk:
    name = 'a full disk'

    def __init__(self, subjects):
        self.subjects = subjects
        self.largest = max(path.stat().st_size for path in subjects.run.rglob('*') if path.is_file())
        self.all = sum(path.stat().st_size for path in subjects.run.rglob('*') if path.is_file())
        self.mounted = self.mount(1 << 20)
        if self.mounted:
            self.unmount()

    def mount(self, size):
        place = self.subjects.start_over('small-disk')
        place.mkdir()
        return os.geteuid() == 0 and subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place],
            capture_output=True).returncode == 0

    def unmount(self):
        subprocess.run(['umount', self.subjects.program.work / 'small-disk'], check=True)

    def attempt(self, rng):
        s = self.subjects
        if not self.mounted or rng.random() < 0.5:  # no file may grow beyond a size
            run = s.start_over('full')
            limit = rng.randrange(1, self.largest)
            s.program.run(s.training(run), codes=(0, 1), preexec_fn=s.program.limits(limit))
            finish(s, run)
            return
        size = rng.randrange(4096, self.all)
        self.mount(size)
        try:
            run = s.program.work / 'small-disk' / 'run'
            s.program.run(s.training(run), codes=(0, 1))
            after = s.start_over('full')
            shutil.copytree(run, after, symlinks=True) if run.exists() else after.mkdir()
        finally:
            self.unmount()
        finish(s, after)


class Flips:
    name = 'single flips at --resume'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('flipped')
        shutil.copytree(s.run, run, symlinks=True)
        last = (run / 'checkpoints' / 'latest').resolve()
        file = rng.choice([path for path in last.rglob('*') if path.is_file() and path.stat().st_size])
        data = bytearray(file.read_bytes())
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        file.write_bytes(data)
        self.evidence = f'{file.name}, byte {at}, bit {bit}'
        outcome = s.program.run(['pretrain', '--resume', run])
        if outcome.code == 0 and b'passed over' not in outcome.err:
            raise Failure(f'a flipped bit was taken: {self.evidence}')
        if outcome.code == 0:  # from the checkpoint before
            require_same(results_of(run), s.final)


class Outputs:
    name = 'outputs that cannot be written'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('unheard')
        command, expected = rng.choice([
            (s.training(run), 0), (['info', '--model', 'nonexist'], 1), (['info', '--modle'], 2),
            (['--help'], 0), (['info', '--model', s.model], 0)])
        where = rng.choice(['full', 'closed', 'nobody'])
        both = rng.random() < 0.3
        self.evidence = f'{command[0]}, {where}, {"both" if both else "stderr"}'

        def prepare():
            s.program.limits()()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for descriptor in (1, 2) if both else (2,):
                if where == 'closed':
                    os.close(descriptor)
                elif where == 'full':
                    os.dup2(os.open('/dev/full', os.O_WRONLY), descriptor)
                else:
                    reader, writer = os.pipe()
                    os.close(reader)
                    os.dup2(writer, descriptor)
        process = s.program.start(command, preexec_fn=prepare)
        process.communicate(timeout=s.program.seconds)
        # Where standard output fails, that is an error; where nobody reads it, SIGPIPE says so.
        allowed = {expected, 1, -signal.SIGPIPE} if both else {expected}
        if process.returncode not in allowed:
            raise Failure(f'{self.evidence}: it ended with {process.returncode}')
        if command[0] == 'pretrain':
            require_same(results_of(run), s.final)


def tree_of(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


class Links:
    name = 'planted links and other people\'s files'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        victim, run = s.start_over('victim'), s.start_over('planted')
        (victim / 'step-00000001').mkdir(parents=True)
        for name in ('thesis.tmp-final.txt', 'config.json', 'step-00000001/model.safetensors',
                     'metrics.jsonl', '.tmp-step-00000001'):
            (victim / name).write_text('mine: ' + name)
        before = tree_of(victim)
        work = rng.choice(['train', 'resume', 'overwrite', 'merge'])
        if work == 'merge':
            command = ['merge', '--model', s.model, '--adapter', s.adapter, '--out', victim,
                       '--overwrite', '--device', 'cpu', '-t', 1]
        else:
            if work == 'train':
                run.mkdir()
            else:
                shutil.copytree(s.run, run, symlinks=True)
            self.plant(rng, run, victim)
            command = ['pretrain', '--resume', run] if work == 'resume' else (
                s.training(run) + (['--overwrite'] if work == 'overwrite' else []))
            if rng.random() < 0.3:
                command = command + ['--tensorboard']
        self.evidence = work
        s.program.run(command)
        if tree_of(victim) != before:
            raise Failure(f'{work} changed files outside its own: {self.evidence}')

    def plant(self, rng, run, victim):
        names = {'metrics.jsonl': 'metrics.jsonl', 'config.yaml': 'thesis.tmp-final.txt',
                 'loss.svg': 'thesis.tmp-final.txt', 'loss.png': 'config.json', 'checkpoints': '.',
                 'checkpoints/latest': 'step-00000001', 'checkpoints/step-00000009': 'step-00000001',
                 'checkpoints/.tmp-x': '.', '.x.mixtral-tmp-0123456789abcdef': '.',
                 'checkpoints/.x.mixtral-tmp-0123456789abcdef': '.', 'tensorboard': '.'}
        for name in rng.sample(list(names), rng.choice([1, 2, 4])):
            path = run / name
            self.evidence = name
            if not path.parent.is_dir() or path.parent.is_symlink():
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.symlink_to(victim / names[name])


class Clock:
    name = 'a clock that jumps'
    not_sanitized = 'a preloaded library comes before the sanitizers\' own'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('jumping')
        s.program.run(s.training(run), {'ATTACK_CLOCK': str(rng.randrange(1 << 30))}, codes=(0,))
        require_same(results_of(run), s.final)


class Rivals:
    name = 'four starts on one run'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        run = s.start_over('contested')
        started = []
        for _ in range(4):
            started.append(s.program.start(s.training(run)))
            time.sleep(rng.random() * 0.05)
        codes = sorted(s.program.finish(process, [], (0, 1)).code for process in started)
        if codes != [0, 1, 1, 1]:
            raise Failure(f'the four ended with {codes}')
        require_same(results_of(run), s.final)


class SmallMemory:
    name = 'little address space'
    not_sanitized = 'sanitizers reserve terabytes of addresses'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        s = self.subjects
        memory = rng.randrange(20 << 20, 600 << 20)
        run = s.start_over('cramped')
        self.evidence = f'{memory >> 20} MiB'

        def prepare():
            s.program.limits()()
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        # 127: too little to load the libraries.
        outcome = s.program.run(s.training(run), codes=(0, 1, 127), preexec_fn=prepare)
        if outcome.code == 1 and not outcome.err:
            raise Failure('it failed without a word')


def all_faults(subjects):
    return [kind(subjects) for kind in (Kills, Signals, SystemCalls, FullDisk, Flips, Outputs, Links,
                                        Clock, Rivals, SmallMemory)]
