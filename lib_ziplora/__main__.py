"""``python -m lib_ziplora``: see ``cli``."""

import os
import signal
import sys

if __name__ == "__main__":
    # PyTorch takes seconds to import and swallows a KeyboardInterrupt there; nothing is begun yet.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from .cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
