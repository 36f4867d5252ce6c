"""``python -m fastssd``: the command ``fastssd``."""

from fastssd.cli import main

if __name__ == "__main__":
    main()
