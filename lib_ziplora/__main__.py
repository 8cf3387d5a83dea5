"""``python -m lib_ziplora``: see ``cli``."""

import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _stop(*_: object) -> None:
    os.write(2, b"Interrupted; nothing was written.\n")
    os._exit(130)


if __name__ == "__main__":
    # PyTorch takes seconds to import and swallows a KeyboardInterrupt there; nothing is begun yet.
    for number in SIGNALS:
        signal.signal(number, _stop)
    from .cli import main

    code = main()
    for number in SIGNALS:  # all is done and told
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
