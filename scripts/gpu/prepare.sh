#!/usr/bin/env bash
# Make da3gs run on a bare GPU machine that has torch (with CUDA) and nvcc but no index.
#   scripts/gpu/prepare.sh WHEELS        installs without touching torch or numpy, then builds gsplat's kernels once
set -euo pipefail
wheels=${1:?usage: prepare.sh WHEELS (a folder made by wheels.sh)}
cd "$(dirname "$0")/../.."
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} MAX_JOBS=${MAX_JOBS:-16}
python -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
export PYTHONPATH=$PWD
python - <<'PY'
import torch
assert torch.cuda.is_available(), "no CUDA device"
from gsplat.cuda._backend import _C
assert _C is not None, "gsplat was not built; is nvcc under $CUDA_HOME/bin?"
print(torch.__version__, torch.cuda.get_device_name(), "gsplat ready")
PY
