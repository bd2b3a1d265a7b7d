"""Runs Schemathesis against `serve` (run by the script `serve_fuzz` beside this file)."""
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from served import served

KEY = "a key for fuzzing"


def main():
    program, examples = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    # A small context: an answer to a request without a limit is short.
    with served(program, "--api-key", KEY, "--context", "96", "--parallel", "4", "--metrics") as url:
        command = [pathlib.Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json",
                   "--header", f"Authorization: Bearer {KEY}", "--checks",
                   "not_a_server_error,content_type_conformance,response_schema_conformance",
                   "--phases", "coverage,fuzzing", "--max-examples", examples, "--request-timeout", "60",
                   "--generation-deterministic", "--continue-on-failure"]
        with tempfile.TemporaryDirectory() as folder:  # it leaves a cache where it runs
            failed = subprocess.run(command, cwd=folder).returncode
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            assert answer.status == 200
    return failed


if __name__ == "__main__":
    sys.exit(main())
