"""One comparison on the GPUs of a Ray cluster, by paths that all its machines see.

python examples/sharing/on_ray.py 8 -m /data/llama --methods default flap --keep-ratios 0.8 0.5 /data/comparison
"""

import subprocess
import sys

import ray

COMMAND = ("optimum-cli", "grasprune", "compare", "--shard")


@ray.remote(num_gpus=1)
def compare(shard: str, options: list[str]) -> int:
    """The exit code of one of the processes. Ray chooses the machine and the GPU."""
    return subprocess.run([*COMMAND, shard, *options]).returncode


ray.init()
count, options = int(sys.argv[1]), sys.argv[2:]
sys.exit(max(ray.get([compare.remote(f"{number}/{count}", options) for number in range(1, count + 1)]), key=abs))
