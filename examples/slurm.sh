#!/bin/bash
# Trains on several nodes under Slurm, one process a GPU, and goes on by itself until the run is done:
#
#     sbatch examples/slurm.sh llama2-437m data.dataset=data/fineweb-edu --run runs/437m
#
# The run folder and the dataset have to be on a disk that all nodes see. Any number of nodes goes: a run continues with
# another number of them. Five minutes before its time is over the job is asked to stop; it saves, ends with 3, and is
# queued again.
#SBATCH --job-name=packtrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=packtrain-%j.log

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# A task that fails takes the others with it, so that none waits for it.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec python -m packtrain train "$@" --resume
' packtrain "$@"
code=$?

if [ "$code" -eq 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
