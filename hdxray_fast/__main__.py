"""``python -m hdxray_fast`` is ``hdxray-fast``."""

import sys

from .cli.main import main

sys.exit(main())
