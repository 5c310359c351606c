#!/usr/bin/env bash
# Train under Slurm, a process for each GPU, for as long as it takes: ahead of its time limit the job saves, stops and puts
# itself back into the queue, and it comes back behind the step that it had done. Not yet run on a Slurm cluster.
#
#   sbatch scripts/slurm_train.sh --recipe recipes/darknet/csresnet50.yaml --data-path DIR --output-dir runs/mine
#   sbatch --nodes=4 --time=8:00:00 scripts/slurm_train.sh …                 # sbatch's flags count before those below
#
#SBATCH --job-name=cspnet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
case " $* " in
    *" --output-dir "* | *" --output "*) ;;
    *) echo "slurm_train.sh: error: name the run's folder with --output-dir DIR, so that it is found again" >&2; exit 2 ;;
esac
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
export PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
code=0
# The tasks get the signal themselves.
# shellcheck disable=SC2016  # each task has its own
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$PYTHON" train.py "$@"' train "$@" --resume auto || code=$?
if [ "$code" = 75 ]; then # stopped by a signal, with everything saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
