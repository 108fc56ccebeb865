"""The published interface: `python main.py KEY=VALUE ...` is the same as `ssfl run KEY=VALUE ...`."""

import sys

from ssfl.cli import main

if __name__ == "__main__":  # worker processes import this file again: they must not start a run
    raise SystemExit(main(["run", *sys.argv[1:]]))
