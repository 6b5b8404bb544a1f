"""Runs a compiler and keeps, beside its object, what it said and what it took: CMake's compiler launcher of the plugin library.

    python compile_log.py nvcc ... -o FOLDER/x.o      writes FOLDER/x.o.log.json

Runs as a script, so it imports nothing of vditc.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path


def main(command: list[str]) -> int:
    """The compiler's exit code. ptxas's report of registers and stacks goes to the file alone, everything else to stderr too."""
    begin = time.monotonic()
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    said = run.stdout.splitlines()
    report = [line for line in said if re.match("ptxas info|    [0-9]+ bytes stack frame", line)]
    sys.stderr.write("".join(f"{line}\n" for line in said if run.returncode or line not in report))
    if run.returncode == 0 and "-o" in command:
        made = Path(command[command.index("-o") + 1])
        facts = {
            "seconds": round(time.monotonic() - begin, 1),
            "megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
            "report": report,
        }
        made.with_name(made.name + ".log.json").write_text(json.dumps(facts))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
