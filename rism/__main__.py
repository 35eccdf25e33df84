"""`python -m rism` is `rism`."""

from rism.cli import main

if __name__ == "__main__":
    main()
