"""The line editor under a pseudo-terminal: any keys, resizes and interrupts, and a clean end."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

from rig import Failure

KEYS = [b'a', b'the fox ', b'\x1b[A', b'\x1b[B', b'\x1b[C', b'\x1b[D', b'\x1b[H', b'\x1b[F', b'\x7f',
        b'\x08', b'\x01', b'\x05', b'\x0b', b'\x15', b'\x17', b'\x19', b'\x0c', b'\t', b'\t\t', b'\x12fox',
        'größer'.encode(), '模型'.encode(), '🙂'.encode(), b'\xff\xfe', b'\x1b', b'\x1b[', b'\x1b[999~',
        b'\x1b[200~pasted\nlines\x1b[201~', b'\\\r', b'\r', b'\r', b'/help\r', b'/reset\r', b'/history\r',
        b'/system \x16\x1b[2Jx\r', b'/nothing\r', b'/save /nowhere/x\r', b'x' * 300, b'\x00']


class LineEditor:
    name = 'keys at a terminal'

    def __init__(self, subjects):
        self.subjects = subjects

    def attempt(self, rng):
        program = self.subjects.program
        arguments = [str(program.path), 'chat', '--model', str(self.subjects.model), '--chat-template',
                     'mistral-v1', '-n', '3', '-t', '1', '--device', 'cpu']
        child, terminal = pty.fork()
        if child == 0:
            program.limits()()
            environment = program.environment({'TERM': rng.choice(['xterm', 'dumb', 'vt100'])})
            os.execve(arguments[0], arguments, environment)
        seen = bytearray()
        try:
            self.wait_for(terminal, seen, b'> ', program.seconds)
            for _ in range(rng.randrange(1, 25)):
                self.press(terminal, child, rng)
                self.read(terminal, seen, 0.02)
            for key in (b'\x03', b'\r', b'\x15', b'/exit\r', b'\x04'):
                self.write(terminal, key)
                self.read(terminal, seen, 0.1)
            code = self.wait(child, terminal, seen, program.seconds)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            os.close(terminal)
        self.evidence = bytes(seen[-2000:])
        if b'Sanitizer' in seen or b'runtime error' in seen:
            raise Failure('a sanitizer reported: ' + seen.decode('utf-8', 'replace')[-1500:])
        if b'a defect in the program' in seen:
            raise Failure('it calls that a defect')
        if code not in (0, 1, 130, -signal.SIGINT):
            raise Failure(f'it ended with {code}')

    def press(self, terminal, child, rng):
        what = rng.random()
        if what < 0.06:
            size = struct.pack('HHHH', rng.choice([1, 24, 60]), rng.choice([1, 5, 60, 200]), 0, 0)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        elif what < 0.1:
            self.write(terminal, b'\x03')
        else:
            self.write(terminal, rng.choice(KEYS))

    @staticmethod
    def write(terminal, data):
        try:
            os.write(terminal, data)
        except OSError:
            pass  # it has ended

    @staticmethod
    def read(terminal, seen, seconds):
        while select.select([terminal], [], [], seconds)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                return False
            if not data:
                return False
            seen += data
        return True

    def wait_for(self, terminal, seen, text, seconds):
        end = time.monotonic() + seconds
        while text not in seen:
            if time.monotonic() > end or not self.read(terminal, seen, 0.1):
                raise Failure('no prompt came: ' + seen.decode('utf-8', 'replace')[-300:])

    def wait(self, child, terminal, seen, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            self.write(terminal, b'\x04')
            self.read(terminal, seen, 0.1)
        raise Failure('it did not leave')
