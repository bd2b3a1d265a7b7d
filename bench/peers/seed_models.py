"""Models of the `seed` configuration with random weights, which the scripts beside this file measure."""
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# Types that this program only reads: llama.cpp writes them.
READ_ONLY = ("q2_k", "q3_k_m", "iq4_nl", "iq4_xs")


def seed_model(program, folder, kind, python=sys.executable):
    """The model of this type in `folder`, made at the first call: a GGUF file ("bf16", "q8_0", ...), or a directory in
    MLX's groups ("int8", "int4")."""
    ending = "" if kind in ("int8", "int4") else ".gguf"
    path = folder / f"seed-{kind}{ending}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part-{kind}{ending}"
        if kind == "bf16":
            part.unlink(missing_ok=True)
            subprocess.run([python, HERE / "random_gguf.py", part], check=True)
        elif kind in READ_ONLY:
            subprocess.run([python, HERE / "llama_quantize.py", seed_model(program, folder, "bf16", python), part, kind],
                           check=True, capture_output=True)
        else:
            subprocess.run([program, "quantize", "--model", seed_model(program, folder, "bf16", python), "--type", kind,
                            "--out", part, "--overwrite", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        part.rename(path)
    return path
