"""Settings for all tests."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch: test processes share the cores

# A suite started in the background (`nohup ... &`) inherits signals that are ignored, and so would all that it starts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
