"""``python -m stif_export``: the same as ``stif-rt export``."""

import sys

from stif_rt.cli import main

sys.argv.insert(1, "export")
main()
