"""GGUF files of the `seed` configuration with random weights, which the scripts beside this file measure."""
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def seed_gguf(program, folder, kind, python=sys.executable):
    """The file of this type ("bf16", "q8_0", ...) in `folder`; made at the first call."""
    path = folder / f"seed-{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part-{kind}.gguf"
        part.unlink(missing_ok=True)
        if kind == "bf16":
            subprocess.run([python, HERE / "random_gguf.py", part], check=True)
        else:
            subprocess.run([program, "quantize", "--model", seed_gguf(program, folder, "bf16", python), "--type", kind,
                            "--out", part, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        part.rename(path)
    return path
