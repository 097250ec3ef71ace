"""`python -m dtrain`, the same as the command `dtrain`; what `accelerate launch -m dtrain` runs."""

from dtrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
