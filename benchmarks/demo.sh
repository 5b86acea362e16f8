#!/usr/bin/env bash
# `make demo`: pre-train on the bundled sounds, judge the encoder frozen on all eight tasks and fine-tuned on two of them,
# beside random weights and log-mel statistics, and print the table. Everything it makes lies under runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED="${SEED:-0}"
RUN="${RUN:-runs/demo/$(date +%Y-%m-%d_%H-%M-%S)}"
TASKS=event,instrument_family,instrument_seen,kind,language,mandarin_tone,percussion,speaker
began=$SECONDS
step() { printf '\n== %s (%d s since the start)\n' "$1" $((SECONDS - began)); }

step "1/4 pre-training on the 1,991 bundled sounds, no labels"
python train.py seed="$SEED" hydra.run.dir="$RUN/pretrain"

step "2/4 judging it frozen: 8 tasks x {random weights, log-mel statistics, DECAR} x 2 protocols"
# by name: glob(*) would also take the public corpora that are prepared on this machine
python eval.py -m task="$TASKS" mode=frozen protocol=paper,search bundle="random,logmel,$RUN/pretrain" seed="$SEED" \
  hydra.sweep.dir="$RUN/frozen"

step "3/4 judging it fine-tuned: 2 tasks, few epochs"
python eval.py -m task=instrument_family,mandarin_tone mode=finetune protocol=paper bundle="random,$RUN/pretrain" \
  seed="$SEED" protocol.max_epochs=12 hydra.sweep.dir="$RUN/finetuned"

step "4/4 the table"
decar table2 "$RUN" --csv "$RUN/table2.csv"
decar report "$RUN/pretrain" --downstream "$RUN" # the page of the run, now with what was judged
printf '\nDone in %d s. The run lies in %s: the encoder is pretrain/encoder.safetensors, the table table2.csv, the page pretrain/report.html.\n' \
  $((SECONDS - began)) "$RUN"
printf "The other fine-tuned cells (an hour on two cores):\n  %s/python eval.py -m task=%s mode=finetune protocol=paper,search bundle=random,%s/pretrain hydra.sweep.dir=%s/finetuned-all\n" \
  "$(dirname "$(command -v python)")" "$TASKS" "$RUN" "$RUN"
