#!/usr/bin/env bash
# Makes every graph under models/graphs/ again. Each route has its own Python packages:
#   EXPORT_PYTHON        an interpreter with requirements.txt
#   ORT_TRAINING_PYTHON  an interpreter with requirements-ort-training.txt
# Usage: models/make_graphs.sh [torch] [matrix] ...   (default: all groups)
set -euo pipefail
cd "$(dirname "$0")/.."

EXPORT_PYTHON=${EXPORT_PYTHON:-python3}
ORT_TRAINING_PYTHON=${ORT_TRAINING_PYTHON:-python3}
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

make_onnx_ad() {
  local model
  for model in gpt2 llama bert nano; do
    exporter --hf "$model" --static --route onnx-ad --no-inputs -o "$GRAPHS/${model}_onnx_ad.onnx"
  done
}

# The inputs of the torch group serve, rounded.
make_bfloat16() {
  exporter --hf llama --dtype bf16 --no-inputs -o "$GRAPHS/bfloat16/llama.onnx"
}

# With the weights and data of the torch group, so that all routes can be compared.
make_ort_training() {
  local model
  for model in gpt2 llama bert nano; do
    "$ORT_TRAINING_PYTHON" models/export_ort_training_graph.py --hf "$model" --weights "$GRAPHS/$model.npz" \
      -o "$GRAPHS/${model}_ort_training.onnx"
  done
}

# Dropout in training, by both routes; small, with the same weights.
make_dropout() {
  local sizes=(--dropout 0.1 --layers 2 --hidden 24 --inner 20 --vocab 50 --heads 6 --batch 2 --seq 61)
  exporter --hf gpt2 --symbolic-batch "${sizes[@]}" -o "$GRAPHS/dropout/gpt2.onnx"
  "$ORT_TRAINING_PYTHON" models/export_ort_training_graph.py --hf gpt2 "${sizes[@]}" \
    --weights "$GRAPHS/dropout/gpt2.npz" -o "$GRAPHS/dropout/gpt2_ort_training.onnx"
}

# One idea each that is easy to shard wrongly; all lengths collide.
make_adversarial() {
  "$EXPORT_PYTHON" models/make_adversarial_graphs.py "$GRAPHS/adversarial"
}

ALL=(torch onnx_ad ort_training matrix bfloat16 dropout adversarial)
for group in "${@:-${ALL[@]}}"; do
  "make_$group"
done
