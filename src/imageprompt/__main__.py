"""`python -m imageprompt`: the same as the `imageprompt` command."""

from __future__ import annotations

import sys

from imageprompt.cli import main

if __name__ == "__main__":
    sys.exit(main())
