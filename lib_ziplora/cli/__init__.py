"""The command line: ``merge``, ``check``, ``re-export``, ``explain``, ``compare``, ``matrix``, ``inspect``, ``serve``.

Exit codes: 0 done; 1 it can't be done (one sentence on stderr says why); 2 the command is
wrong; 130 interrupted, and nothing was written.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence

from ..errors import ConfigError, Interrupted, ZipLoraError
from .arguments import parser
from .compare import compare_from
from .matrix import matrix_from
from .requests import parsed, reexport_from, request_from
from .terminal import lenient_output, silence_output

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    lenient_output()
    top = parser()
    args = parsed(top, argv)
    if args.command == "inspect" and len(args.files) > 2:
        top.error("inspect takes one or two files")
    makers: Mapping[str, Callable[[Namespace], object]] = {
        "merge": request_from,
        "check": request_from,
        "re-export": reexport_from,
        "compare": compare_from,
        "matrix": matrix_from,
    }
    if args.command in makers:
        try:
            args.request = makers[args.command](args)
        except ConfigError as error:
            top.error(str(error))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # ``inspect ... | head``
        silence_output()
        return FAILED
    except (Interrupted, KeyboardInterrupt) as error:
        print(str(error) or "Interrupted; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    except ZipLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
