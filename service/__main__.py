"""``python -m service``: see `service.supervisor`."""

import signal
import sys

if __name__ == "__main__":
    # While the imports last, Ctrl-C ends the process as it ends any other: KeyboardInterrupt, which Python's own handler raises, is lost
    # where C code imports a module or a destructor runs.
    python_handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or whoever started this wants none
    if python_handles:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from service.supervisor import main

    if python_handles:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
