#!/bin/bash
# One comparison as an array of jobs, each with a GPU:
#     sbatch --array=1-8 examples/sharing/slurm.sh -m ./llama --methods default flap fasp --keep-ratios 0.8 0.5 ./comparison
#SBATCH --job-name=compare
#SBATCH --array=1-8
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
exec srun optimum-cli grasprune compare --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" "$@"
