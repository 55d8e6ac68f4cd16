#!/bin/sh
# The demo: an R2DN policy and an LSTM of equal size on pendulum swing-up, certified, stress-tested and compared.
# usage: BIN=.venv/bin sh benchmarks/demo.sh FOLDER
set -eu
folder=${1:?usage: demo.sh FOLDER}
robust_policies=${BIN:-.venv/bin}/robust-policies
rm -rf "$folder"
"$robust_policies" train train/demo.yaml -o "$folder" --no-report
"$robust_policies" train train/demo_lstm.yaml -o "$folder/lstm" --no-report
"$robust_policies" report "$folder" "$folder/lstm" -o "$folder/report.html"
echo "The report: $(cd "$folder" && pwd)/report.html"
