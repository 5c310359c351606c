#!/usr/bin/env bash
# Makes the environment if it is not there, then checks style and types and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment requirements-dev.txt
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# A test file a process: the tests are many small ones, and one core each is what they need. Files in their order: sorted by
# the number of their tests, those that start whole runs would be left for the end, where one core waits for the other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# One more than there are cores: some tests wait for other processes.
cores=$("$PYTHON" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
"$PYTHON" -m pytest -n $((cores + 1)) --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
