#!/bin/bash
#SBATCH --job-name=packtrain-prepare
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
# Prepares one dataset on many nodes that share only a file system. Submit three jobs, each after the one before:
#
#   scan=$(sbatch --parsable docs/slurm/prepare.sh RECIPE /shared/DATASET [key=value ...])
#   tokenize=$(sbatch --parsable --dependency=afterok:$scan docs/slurm/prepare.sh RECIPE /shared/DATASET [key=value ...])
#   sbatch --dependency=afterok:$tokenize --array=0 docs/slurm/prepare.sh RECIPE /shared/DATASET [key=value ...] --finish
#
# The array's indices must start at 0. To retry a task that was killed, submit it again unchanged: it keeps what it had finished.
set -euo pipefail
recipe=$1 out=$2
shift 2
part=(--slice-range "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
for word in "$@"; do
  [[ $word == --finish ]] && part=()
done
packtrain prepare "$recipe" "$@" --out "$out" "prepare.workers=${SLURM_CPUS_PER_TASK:-1}" "${part[@]}"
