"""The command line: ``merge``, ``check``, ``re-export``, ``explain``, ``compare``, ``matrix``, ``inspect``,
``self-test``, ``serve``.

Exit codes: 0 done; 1 it can't be done (one sentence on stderr says why); 2 the command is
wrong; 130 interrupted (one sentence says what was written, if anything).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..errors import ConfigError, Interrupted, ZipLoraError
from .arguments import parser
from .terminal import Interrupts, lenient_output, silence_output

FAILED, INTERRUPTED = 1, 130
TAKE_FILES = ("merge", "check")
"""Commands with a SUBJECT and a STYLE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    interrupts = Interrupts()
    try:
        with interrupts.raised():
            return _run(argv, interrupts)
    except BrokenPipeError:  # ``inspect ... | head``
        silence_output()
        return FAILED
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print(interrupts.sentence(), file=sys.stderr)
        return INTERRUPTED
    except ZipLoraError as error:
        if interrupts.pressed:  # libraries answer an interrupt with errors of all kinds
            print(interrupts.sentence(), file=sys.stderr)
            return INTERRUPTED
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> int:
    lenient_output()
    args = parsed(argv)
    args.interrupts = interrupts
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the request that they ask for; a wrong command ends the program with 2."""
    top = parser()
    args, others = top.parse_known_args(argv)  # SUBJECT and STYLE may stand anywhere among the options
    if others and (args.command not in TAKE_FILES or any(word.startswith("-") for word in others)):
        top.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        args.files += others
    if args.command == "inspect" and len(args.files) > 2:
        top.error("inspect takes one or two files")
    if args.request_from is not None:
        try:
            args.request = args.request_from(args)
        except ConfigError as error:
            top.error(str(error))
    return args
