#!/usr/bin/env bash
# Record every sample again, small enough to keep: one run each under sample_runs/runs/<name>, the oldest format readers must open.
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for spec in rnn_text deep_transformer digits_conv adapters price_autoencoder; do
    GRADSCOPE_DIR="$scratch/$spec" gradscope analyze "$spec.py" --format json -o "$scratch/$spec.json"
    rm -rf "runs/$spec"
    mkdir -p runs
    cp -r "$scratch/$spec/runs/$(cat "$scratch/$spec/latest")" "runs/$spec"
done
du -sh runs
