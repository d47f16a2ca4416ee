"""Entry point inside a kernel: ``python3 -u main.py --socket PATH ...`` (see docs/reference/runner-protocol.md)."""

import sys

if __name__ == "__main__":
    # The import below needs this folder; user code must not see it, but its own working directory.
    app = __import__("bai_runner.app", fromlist=["main"])
    sys.path[0] = ""
    app.main(sys.argv[1:])
