#!/usr/bin/env bash
# One comparison by several processes of this machine, each on a GPU of its own:
#     examples/sharing/processes.sh 4 -m ./llama --methods default flap fasp --keep-ratios 0.8 0.5 ./comparison
set -euo pipefail
count=$1
shift
IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
trap 'kill $(jobs -p) 2> /dev/null' INT TERM  # what runs in the background does not hear Ctrl-C
for number in $(seq "$count"); do
    CUDA_VISIBLE_DEVICES=${gpus[(number - 1) % ${#gpus[@]}]} \
        optimum-cli grasprune compare --shard "$number/$count" "$@" &
done
code=0
for process in $(jobs -p); do
    wait "$process" || code=$?
done
exit "$code"
