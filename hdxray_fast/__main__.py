"""``python -m hdxray_fast`` is ``hdxray-fast``."""

import sys

from .cli import main

sys.exit(main())
