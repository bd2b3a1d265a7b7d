"""Runs the program that is tested."""
import subprocess


def run(program, *arguments):
    """What it prints. Ends the script where it fails."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout
