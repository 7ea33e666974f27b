"""`python -m nonesuch` is the command line."""

import sys

from nonesuch.cli import main

sys.exit(main())
