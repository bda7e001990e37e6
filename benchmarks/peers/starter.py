"""
Start work on demand, in the peers' environment: `python -m benchmarks.peers.starter APP`.

Each line of the standard input is a command: `prepare`, or `FUNCTION CHUNKS SIZE`. The answer is a line of JSON, with
the moment just before the function was called, so that neither the start of Python nor imports are in a figure.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from benchmarks.peers.rows import Work


def main(name: str) -> None:
    """Import the app, begin, and do what each line says."""
    # Libraries print, and the answers are for one who reads them.
    answers, sys.stdout = sys.stdout, sys.stderr
    app = importlib.import_module(name)
    if hasattr(app, "launch"):
        app.launch()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        began = time.time()
        if command == "prepare":
            getattr(app, "prepare", bool)()
        else:
            getattr(app, command)(Work(*map(int, numbers)))
        print(json.dumps({"began": began, "returned": time.time()}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
