#!/usr/bin/env bash
# From nothing to a trained network: makes the environment, draws a small set of pictures, trains a small CSPNet on it,
# validates the checkpoint and prints its accuracy. Arguments go to train.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment requirements.txt
data=runs/demo-data
run=runs/demo-$(date +%Y%m%d-%H%M%S)
mkdir -p runs
if [ ! -d "$data" ]; then
    echo "drawing 12 classes of shapes with textures: 2,400 pictures to train, 600 to validate"
    "$PYTHON" scripts/draw_dataset.py "$data"
fi
"$PYTHON" train.py --recipe recipes/demo.yaml --data-path "$data" --output-dir "$run" "$@"
"$PYTHON" validate.py --checkpoint "$run/checkpoints/best.pt" --data-path "$data"
