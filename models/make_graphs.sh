#!/usr/bin/env bash
# Makes every graph under models/graphs/ again. Each route has its own Python packages:
#   EXPORT_PYTHON        an interpreter with requirements.txt
#   ORT_TRAINING_PYTHON  an interpreter with requirements-ort-training.txt
# Usage: models/make_graphs.sh [torch] [matrix] ...   (default: all groups)
set -euo pipefail
cd "$(dirname "$0")/.."

EXPORT_PYTHON=${EXPORT_PYTHON:-python3}
GRAPHS=models/graphs
export OMP_NUM_THREADS=1

exporter() { "$EXPORT_PYTHON" models/export_training_graph.py "$@"; }

make_torch() {
  local model
  for model in gpt2 llama bert nano; do
    exporter --hf "$model" -o "$GRAPHS/$model.onnx"
    exporter --hf "$model" --static --no-inputs -o "$GRAPHS/${model}_static.onnx"
  done
}

# One small decoder layer for each (heads, key-value heads); batch and sequence are both open.
make_matrix() {
  local heads kv_heads hidden
  for pair in 6:1 6:2 6:3 6:6 8:1 8:2 8:8; do
    heads=${pair%:*} kv_heads=${pair#*:}
    if [ "$heads" = 6 ]; then hidden=24; else hidden=48; fi
    exporter --hf llama --symbolic-batch --layers 1 --hidden "$hidden" --inner 20 --vocab 50 \
      --heads "$heads" --kv-heads "$kv_heads" --batch 2 --seq 61 -o "$GRAPHS/matrix/llama_h${heads}_kv${kv_heads}.onnx"
  done
}

ALL=(torch matrix)
for group in "${@:-${ALL[@]}}"; do
  "make_$group"
done
