#!/bin/bash
# Trains on several nodes under Slurm, one process per GPU, and requeues itself until the run is done:
#
#     sbatch examples/slurm.sh llama2-437m data.dataset=data/fineweb-edu --run runs/437m
#
# Every node must see the run's folder and the dataset. You may change the number of nodes between starts. Five minutes before
# its time is up, Slurm asks the job to stop. The job saves, exits with code 3, and is queued again.
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

# If a task fails, srun ends the others, which would otherwise wait for it.
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
