"""`python -m shard_tools`, the same as the command `shard-tools`."""

from shard_tools.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
