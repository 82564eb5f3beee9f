"""``python -m vgjax``."""

import sys

from vgjax.cli import main

sys.exit(main())
