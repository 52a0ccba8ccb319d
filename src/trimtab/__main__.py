"""``python -m trimtab`` is the ``trimtab`` command."""

from trimtab.cli.main import run

run()
