"""``python -m detinfer.cli``: the command, wherever its script is not on the path."""

import sys

from detinfer.cli import main

sys.exit(main())
