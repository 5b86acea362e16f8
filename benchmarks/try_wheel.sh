#!/usr/bin/env bash
# Build the wheel, install it into a new environment, embed and search in an empty folder: make wheel
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} CHECKOUT=$PWD
EMPTY=$(mktemp -d)
trap 'rm -rf "$EMPTY"' EXIT
rm -rf dist
"$PYTHON" -m venv "$EMPTY/venv"
"$EMPTY/venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir dist .
"$EMPTY/venv/bin/python" -m pip install --quiet -c constraints.txt "$(echo dist/decar-*.whl)[cpu]"
export PATH="$EMPTY/venv/bin:$PATH" DECAR_CACHE="$EMPTY/cache"
mkdir "$EMPTY/work" && cd "$EMPTY/work"
python -c "import decar; assert not decar.__file__.startswith('$CHECKOUT'), decar.__file__"
sounds=$(python -c "from decar.cli.config import bundled; print(bundled('audio'))")
decar embed "$sounds" --out e.parquet
decar search "$(ls "$sounds"/*.opus | head -n 1)" e.parquet -n 5 --csv found.csv
test "$(wc -l < found.csv)" -eq 6
decar-train debug=fast hydra.run.dir=run && decar-eval task=speaker bundle=run hydra.run.dir=cell
echo "$(cd "$CHECKOUT" && ls dist/*.whl): works in an empty folder"
