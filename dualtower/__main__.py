"""``python -m dualtower`` is the command ``dualtower``."""

from dualtower.cli import main

main()
