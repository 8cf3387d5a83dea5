#!/usr/bin/env bash
# What `python -m benchmarks.gpu` measures, on a machine whose Python has torch, transformers and peft.
# diffusers is taken from out/wheels where that Python lacks it: fill it before, with the network, by
#   pip download --no-deps -d out/wheels "$(grep -ioE '^diffusers==[0-9.]+' requirements/dev.txt)"
set -euo pipefail
cd "$(dirname "$0")/.."
python=${GPU_PYTHON:-python3}
site=out/wheels/site
if ! "$python" -c 'import diffusers' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" out/wheels/*.whl
    export PYTHONPATH="$PWD/$site"
fi
exec timeout 540 "$python" -m benchmarks.gpu "$@"
