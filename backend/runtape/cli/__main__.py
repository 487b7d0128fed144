"""`python -m runtape.cli`, which the launcher and the embedded server's start use."""

import sys

from runtape.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
