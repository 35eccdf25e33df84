"""`python -m rism` is `rism`."""

from rism.runtime.cli import main

if __name__ == "__main__":
    main()
