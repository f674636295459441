"""``python -m convweights``."""

from convweights.cli import main

if __name__ == "__main__":
    main()
