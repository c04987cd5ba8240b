#!/usr/bin/env bash
# Every nerfstudio command on one real scene, by hand: trains both methods, evaluates, exports, renders, converts.
#
#   scripts/nerfstudio_scene.sh DATA [OUTPUT] [ns-train flags ...] [-- dataparser flags ...]
#
# DATA is a folder with transforms.json. Examples:
#   scripts/nerfstudio_scene.sh data/fox
#   scripts/nerfstudio_scene.sh data/fox outputs --machine.device-type cpu --pipeline.model.image-size 252 \
#       --pipeline.datamanager.camera-res-scale-factor 0.5 --max-num-iterations 300
#   scripts/nerfstudio_scene.sh data/fox outputs -- --eval-mode interval --eval-interval 8
set -euo pipefail

data=${1:?"usage: $0 DATA [OUTPUT] [ns-train flags ...] [-- dataparser flags ...]"}
shift
output=outputs
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi
flags=() parser=()
while [[ $# -gt 0 ]]; do
    if [[ $1 == -- ]]; then
        shift
        parser=(nerfstudio-data "$@")
        break
    fi
    flags+=("$1")
    shift
done

command -v ffmpeg >/dev/null || { echo "ns-render needs ffmpeg on PATH (apt-get install ffmpeg)" >&2; exit 2; }

for method in da3gs da3gs-splat; do
    stamp=$(date +%Y-%m-%d_%H%M%S)
    run=$output/$(basename "$data")/$method/$stamp
    ns-train "$method" --data "$data" --output-dir "$output" --timestamp "$stamp" --vis tensorboard \
        ${flags[@]+"${flags[@]}"} ${parser[@]+"${parser[@]}"}
    ns-eval --load-config "$run/config.yml" --output-path "$run/eval.json" --render-output-path "$run/eval"
    ns-export gaussian-splat --load-config "$run/config.yml" --output-dir "$run/export"
    ns-render interpolate --load-config "$run/config.yml" --output-path "$run/interpolate.mp4" \
        --pose-source eval --interpolation-steps 10 --rendered-output-names rgb depth
    ns-render dataset --load-config "$run/config.yml" --output-path "$run/dataset" --rendered-output-names rgb gt-rgb
    da3gs convert "$run" "$run/scene.ply"
    echo "$method: $run"
    cat "$run/eval.json"
done
echo "look at it: ns-viewer --load-config $run/config.yml"
