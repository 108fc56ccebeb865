"""`python -m ssfl` is the same as the console script `ssfl`."""

from ssfl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
