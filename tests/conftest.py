"""Settings for all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch: test processes share the cores
