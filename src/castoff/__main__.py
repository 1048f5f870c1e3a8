"""``python -m castoff``: the same as the ``castoff`` command."""

import sys

from castoff.cli import main

sys.exit(main())
