"""What holds for every test: none reads or writes the history of whoever runs them."""

from __future__ import annotations

import os

os.environ["TRIMTAB_HISTORY"] = ""
