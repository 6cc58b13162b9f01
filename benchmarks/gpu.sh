#!/bin/sh
# What a GPU does with this product: detection beside the network's ceiling, training and its loader's share, embeddings.
# At most 8 minutes, after the environment is made (make install) and the weights are in the cache (animl-pipeline weights fetch …).
#   benchmarks/gpu.sh [--images N]
# Without a GPU the same work runs on a few images, to check the script; nothing is claimed then, and it ends with 1.
set -eu
cd "$(dirname "$0")/.."
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
exec timeout 480 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
