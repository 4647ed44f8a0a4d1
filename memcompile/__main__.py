"""``python -m memcompile``."""

from memcompile.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
