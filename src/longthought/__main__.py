"""``python -m longthought``: the command line."""

import sys

from longthought.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
