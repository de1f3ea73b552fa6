"""One thread a process: for tiny tensors more are slower, and numbers then do not depend on the machine's cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
