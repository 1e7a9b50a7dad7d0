"""`python -m daemonkit`."""

import sys

from daemonkit.cli import main

sys.exit(main())
