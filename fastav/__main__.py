"""``python -m fastav`` is the command ``fastav``."""

import sys

from fastav.training.cli import main

sys.exit(main())
