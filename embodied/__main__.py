"""`python -m embodied`, the same as `embodied`."""

from embodied.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
