"""Changed inputs of every kind: each must be refused in a sentence, or read, and never crash."""

import json
import shutil
import struct

EXTREMES = ['-1', '0', '1', '2.9', '1e308', '-1e308', '1e400', '9223372036854775807',
            '9223372036854775808', '18446744073709551616', '010', 'NaN', 'null', 'true', '[]', '{}',
            '""', '"\\u001b[2J"', '"\\u0000"', '"' + 'A' * 3000 + '"']
HOSTILE = [b'\x00', b'\x1b[2J\x1b]0;x\x07', b'\xc2\x9b2J', b'\xe2\x80\xae', b'\xff\xfe', b'\n',
           b'[' * 600, b'{"a":' * 300, b'A' * 5000, b'\xef\xbb\xbf', b'---\n', b'../../x', b'%s%n',
           b'(?:(?=.)){10000}', b'&a [*a,*a]', b'!!binary |', b'\r\n']


def bytes_changed(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 40])):
        size = len(data)
        at = rng.randrange(size) if size else 0
        kind = rng.randrange(8)
        if kind == 0 and size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            data[at] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)])
        elif kind == 2:
            del data[at:at + rng.choice([1, 2, 8, 100, size])]
        elif kind == 3:
            data[at:at] = rng.choice(HOSTILE)
        elif kind == 4:
            data[at:at] = data[at:at + rng.choice([1, 8, 64, 1000])]
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            data += rng.choice(HOSTILE)
        elif kind == 7 and size:
            count = min(rng.choice([4, 8]), size - at)
            data[at:at + count] = rng.choice([b'\xff', b'\x00', b'\x7f'])[:1] * count
    return bytes(data)


def tokens_changed(rng, text):
    """A value of a JSON or YAML text put in the place of another."""
    places, at = [], 0
    while at < len(text):
        if text[at].isdigit() or text[at] == '"':
            end = at + 1
            if text[at] == '"':
                while end < len(text) and text[end] not in '"\n':
                    end += 1
                end += 1
            else:
                while end < len(text) and (text[end].isalnum() or text[end] in '.-+'):
                    end += 1
            places.append((at, end))
            at = end
        else:
            at += 1
    for begin, end in sorted(rng.sample(places, min(len(places), rng.choice([1, 1, 2]))), reverse=True):
        text = text[:begin] + rng.choice(EXTREMES) + text[end:]
    return text


def json_changed(rng, data):
    if rng.random() < 0.4:
        return bytes_changed(rng, data)
    return tokens_changed(rng, data.decode('utf-8', 'surrogateescape')).encode(
        'utf-8', 'surrogateescape')


def safetensors_changed(rng, data):
    """Bytes, or the header with its length kept true."""
    if rng.random() < 0.4 or len(data) < 9:
        return bytes_changed(rng, data)
    (length,) = struct.unpack('<Q', data[:8])
    header, rest = data[8:8 + length], data[8 + length:]
    if rng.random() < 0.3:  # tensors renamed, doubled, dropped, with other types and shapes
        tensors = json.loads(header)
        name = rng.choice(list(tensors))
        change = rng.randrange(5)
        if change == 0:
            tensors[name + rng.choice(['', '\x1b[2J', '\u202e', 'x' * 2000])] = tensors.pop(name)
        elif change == 1:
            tensors.pop(name)
        elif change == 2 and name != '__metadata__':
            tensors[name]['dtype'] = rng.choice(['F64', 'F16', 'I64', 'F8_E4M3', 'BOOL', '?'])
        elif change == 3 and name != '__metadata__':
            tensors[name]['shape'] = [rng.choice([0, 1, 2**31, 2**62, 3]) for _ in range(rng.randrange(40))]
        else:
            tensors[rng.choice(['x', '', 'lm_head.weight'])] = dict(tensors[name])
        header = json.dumps(tensors, ensure_ascii=False).encode('utf-8', 'replace')
    else:
        header = json_changed(rng, header)
    return struct.pack('<Q', rng.choice([len(header)] * 9 + [rng.randrange(2**64)])) + header + rest


class Mutations:
    """One kind of input: how it is changed, and the commands that read it."""

    def __init__(self, name, subjects, folder, file, change, commands):
        self.name, self.subjects = 'changed ' + name, subjects
        self.folder, self.file, self.change, self.commands = folder, file, change, commands

    def attempt(self, rng):
        place = self.subjects.start_over('mutated')
        if self.folder.is_dir():
            shutil.copytree(self.folder, place, symlinks=True)
            target = place / self.file
        else:
            place.mkdir()
            target = place / self.folder.name
            shutil.copy(self.folder, target)
        target = target.resolve()
        changed = self.change(rng, target.read_bytes())
        target.write_bytes(changed)
        self.evidence = changed
        self.subjects.program.run(rng.choice(self.commands)(place, target))


def all_mutations(s):
    def generate(place, _):
        return ['generate', '--model', place, '--prompt', 'the fox', '-n', 3, '--device', 'cpu', '-t', 1]

    def info(place, _):
        return ['info', '--model', place, '--device', 'cpu']

    def convert(place, _):
        return ['merge', '--model', place, '--adapter', s.adapter, '--out', s.start_over('merged'),
                '--device', 'cpu', '-t', 1]

    def with_adapter(place, _):
        return ['generate', '--model', s.model, '--adapter', place, '--prompt', 'the', '-n', 2,
                '--device', 'cpu', '-t', 1]

    def merge(place, _):
        return ['merge', '--model', s.model, '--adapter', place, '--out', s.start_over('merged'),
                '--device', 'cpu', '-t', 1]

    def encode(place, _):
        return ['tokenizer', 'encode', '--tokenizer', place, '--text', 'the fox sings']

    def check(_, target):
        return ['data', 'check', '--data', target, '--tokenizer', s.tokenizer]

    def tune(_, target):
        return ['finetune', '--model', s.model, '--data', target, '--out', s.start_over('tuned'),
                '--iters', 1, '--rank', 1, '--batch-size', 2, '--context', 16, '--sample-tokens', 0,
                '-t', 1, '--device', 'cpu', '--overwrite']

    def configured(_, target):
        return s.training(s.start_over('configured')) + ['--config', target, '--overwrite',
                                                         '--iters', 1, '--dump-config']

    def resume(place, _):
        return ['pretrain', '--resume', place]

    def plot(place, _):
        return ['plot', place, '--ascii']

    run_file = 'checkpoints/latest/'
    rows = [
        ('safetensors', s.model, 'model.safetensors', safetensors_changed, [generate, convert]),
        ('config.json', s.model, 'config.json', json_changed, [generate, info]),
        ('tokenizer.model', s.model, 'tokenizer.model', bytes_changed, [generate, encode]),
        ('adapter_config.json', s.adapter, 'adapter_config.json', json_changed, [with_adapter, merge]),
        ('adapter tensors', s.adapter, 'adapter_model.safetensors', safetensors_changed,
         [with_adapter, merge]),
        ('text records', s.data, '', json_changed, [check, tune]),
        ('conversations', s.messages, '', json_changed, [check, tune]),
        ('preference pairs', s.pairs, '', json_changed, [check]),
        ('plain text', s.text, '', bytes_changed, [check]),
        ('YAML', s.yaml, '', json_changed, [configured]),
        ('config.yaml of a run', s.run, 'config.yaml', json_changed, [resume]),
        ('metrics', s.run, 'metrics.jsonl', json_changed, [resume, plot]),
        ('state.json', s.run, run_file + 'state.json', json_changed, [resume]),
        ('manifest.json', s.run, run_file + 'manifest.json', json_changed, [resume, generate]),
        ('optimizer state', s.run, run_file + 'optimizer.safetensors', safetensors_changed, [resume]),
    ]
    return [Mutations(row[0], s, *row[1:]) for row in rows]
