"""``python -m stif_export``: the same as ``stif-rt export``."""

from .cli import main

main()
