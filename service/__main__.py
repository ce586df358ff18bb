"""``python -m service``: see `service.supervisor`."""

import signal
import sys

if __name__ == "__main__":
    # Python's own handler raises KeyboardInterrupt, which is lost where C code imports a module or a destructor runs: while the imports
    # last, Ctrl-C ends the process as it ends any other. `main` has handlers of its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from service.supervisor import main

    sys.exit(main())
