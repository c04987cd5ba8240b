#!/usr/bin/env bash
# Train da3-tiny and its Gaussian head on one GPU, in pieces of MINUTES that continue each other.
#   scripts/gpu/train_tiny.sh OUT MINUTES [STAGE]    STAGE: student (default), fine, head
# A piece ends by itself; the next one goes on from the last checkpoint in OUT. Only the averaged weights (35 MB in
# float32) have to travel between machines: give them as --task.model FILE --task.pretrained true.
set -euo pipefail
out=${1:?usage: train_tiny.sh OUT MINUTES [student|fine|head]}
minutes=${2:?minutes per piece}
stage=${3:-student}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} PYTHONUNBUFFERED=1
data=(--task.data.cache "$out/scenes" --task.evaluation-data.cache "$out/scenes" --workers 12)
case $stage in
  student) config=student_synthetic_tiny; extra=(--task.images-per-batch 256 --task.views 2 8 "${data[@]}") ;;
  fine) config=student_synthetic_tiny_fine
        extra=(--task.model "$out/student/model.safetensors" --task.images-per-batch 192 --task.views 2 8 "${data[@]}") ;;
  head) config=gs_head_synthetic_tiny
        extra=(--task.model "$out/fine/model.safetensors" --task.scenes-per-batch 16 --task.draws 0 --task.cache 0 --workers 12) ;;
  *) echo "unknown stage $stage; expected student, fine or head" >&2; exit 2 ;;
esac
# SIGINT ends between steps; checkpoints are written every few hundred steps, so at most that much is lost.
status=0
timeout --signal INT --kill-after 30 "${minutes}m" \
    python -m da3gs.cli.main train "$config" --resume --device auto --output "$out/$stage" \
    --checkpoint-every 200 --evaluate-every 1000 "${extra[@]}" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 124 ] || [ "$status" -eq 130 ] || exit "$status"
tail -n 1 "$out/$stage/metrics.jsonl"
