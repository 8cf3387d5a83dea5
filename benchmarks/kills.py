"""Kills merges at random moments and checks what is left of them.

Direct merges of two of MiniXL's LoRAs, half of them over an older merge, are ended by SIGKILL, SIGTERM or SIGINT at a
random moment. At once a file under its real name must be whole; after the next run (here ``check``'s own cleaning)
there must be the old pair of LoRA and coefficients, the new pair, or nothing, and no hidden file.
``python -m benchmarks.kills --count N --seed S``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lib_ziplora.cli import main as main_of_cli
from lib_ziplora.errors import ZipLoraError
from lib_ziplora.lora.io.atomic import clean_leftovers
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.lora.io.sidecar import read_sidecar, sidecar_path

LORAS = Path("examples/minixl/loras") if Path("examples/minixl").is_dir() else Path("benchmarks/minixl/loras")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def merge(folder: Path, weight: float) -> int:
    """Merge on the command line, in this process; the exit code."""
    loras = sorted(LORAS.glob("*.safetensors"))[:2]
    arguments = ["merge", *map(str, loras), "--method", "direct", "--force", "--no-card"]
    return main_of_cli(
        [*arguments, "--subject-weight", str(weight), "-o", str(folder / "merged.safetensors")]
    )


def merging(folder: Path, weight: float, log: Path) -> int:
    """A child process, everything imported, that merges; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 130
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        code = merge(folder, weight)
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(code)


def pair(lora: Path) -> str:
    """``nothing``, or the digest of the coefficients that both files agree on.

    Raises:
        ValueError: half a pair, or two halves of different merges.
        LoraFileError: a file that is not whole.
    """
    side = sidecar_path(lora)
    if lora.exists() != side.exists():
        raise ValueError(f"only {lora.name if lora.exists() else side.name} is there")
    if not lora.exists():
        return "nothing"
    sha256 = read_sidecar(side)[1]
    note = read_recipe(inspect_header(lora).metadata)["coefficients"]
    if note["sha256"] != sha256:
        raise ValueError("the two files are of different merges")
    return sha256


def whole(lora: Path) -> None:
    """Raise unless what is there under its real name is a whole file."""
    if lora.exists():
        content = lora.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        if inspect_header(lora).metadata["sshs_model_hash"] != hashlib.sha256(content[start:]).hexdigest():
            raise ValueError(f"{lora.name} is damaged")
    if sidecar_path(lora).exists():
        read_sidecar(sidecar_path(lora))


def kill_one(folder: Path, old: Path, chance: random.Random, seconds: float) -> tuple[str, str]:
    """(what was left, what was wrong with it or "")."""
    lora, before = folder / "merged.safetensors", "nothing"
    if chance.random() < 0.5:
        for file in (old, sidecar_path(old)):
            shutil.copy(file, folder)
        before = pair(lora)
    log, number = folder.with_suffix(".log"), chance.choice(SIGNALS)
    log.touch()
    child = merging(folder, chance.uniform(0.1, 0.9), log)
    time.sleep(chance.uniform(0, seconds))
    os.kill(child, number)
    status = os.waitpid(child, 0)[1]
    told = log.read_text(encoding="utf-8", errors="replace")
    try:
        whole(lora)
        if number != signal.SIGKILL and (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) not in (0, 130)):
            raise ValueError(f"it ended with {status}: {told[-300:]}")
        clean_leftovers(folder)
        left = pair(lora)
        hidden = [file.name for file in folder.iterdir() if file.name.startswith(".")]
        if hidden:
            raise ValueError(f"left behind: {', '.join(hidden)}")
        if "nothing was written" in told.lower() and left != before:
            raise ValueError("it said that nothing was written")
    except (ValueError, KeyError, OSError, ZipLoraError) as error:
        return "broken", f"{number.name}: {type(error).__name__}: {error}"
    return f"{number.name}: {'as before' if left == before else 'new'}", ""


def main() -> int:
    """Run the kills; 1 when something was left broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, counts, wrong = random.Random(arguments.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "old" / "merged.safetensors"
        old.parent.mkdir()
        merge(old.parent, 1.0)
        started = time.monotonic()
        merge(old.parent, 1.0)
        seconds = 1.2 * (time.monotonic() - started)
        for index in range(arguments.count):
            folder = Path(temporary) / str(index)
            folder.mkdir()
            left, problem = kill_one(folder, old, chance, seconds)
            counts[left] += 1
            if problem:
                wrong += 1
                print(f"{index}: {problem}", flush=True)
            shutil.rmtree(folder)
    print(json.dumps(dict(sorted(counts.items()))))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
