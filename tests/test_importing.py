"""Importing the package is quick, and transformers' Auto classes know pruned checkpoints all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optimum_grasprune import GRASPConfig, GRASPPruner
from tests.conftest import make_model, make_tokenizer


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import optimum_grasprune",
        "from optimum_grasprune import GRASPConfig, GraspruneError; GRASPConfig(method='flap', keep_ratio=0.3)",
        "from optimum_grasprune.methods import method_names; assert 'fasp' in method_names()",
    ],
)
def test_importing_loads_no_torch(statement: str) -> None:
    assert run(f"{statement}; import sys; print({{'torch', 'transformers'}} & set(sys.modules))") == "set()"


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importing") / "pruned"
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.6))
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


LOAD = """
import inspect, pickle, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

loaded = [cls.from_pretrained({folder!r}) for cls in (AutoConfig, AutoModel, AutoModelForCausalLM)]
assert isinstance(loaded[2], LlamaForCausalLM) and AutoTokenizer.from_pretrained({folder!r})
assert {{type(each).__module__.rpartition(".")[0] for each in loaded}} == {{"optimum_grasprune.families.llama"}}
assert pickle.loads(pickle.dumps(loaded[0])).is_heterogeneous

# The hook is gone, and so is every trace of it.
assert type(sys.meta_path[0]).__module__ != "optimum_grasprune.auto_classes"
module = inspect.getmodule(LlamaForCausalLM)
assert {{type(module.__loader__).__name__, type(module.__spec__.loader).__name__}} == {{"SourceFileLoader"}}
assert "class LlamaModel" in inspect.getsource(module)
"""


@pytest.mark.parametrize(
    "before",
    [
        "import optimum_grasprune, importlib.util; assert importlib.util.find_spec('transformers.models.auto').loader",
        "from transformers import AutoModelForCausalLM; import optimum_grasprune",
        # Half of modeling_llama is there when it imports the Auto classes. An import that fails changes nothing.
        "import optimum_grasprune\n"
        "try: import transformers.no_such_module\n"
        "except ModuleNotFoundError as error: assert error.name == 'transformers.no_such_module'\n"
        "import transformers.models.llama.modeling_llama",
        "import threading, optimum_grasprune\n"
        "thread = threading.Thread(target=__import__, args=('transformers.pipelines',))\n"
        "thread.start(); thread.join()",
    ],
    ids=["before", "after", "midst", "thread"],
)
def test_auto_classes_load_pruned_checkpoints(before: str, pruned_folder: Path) -> None:
    run(f"{before}\n{LOAD.format(folder=str(pruned_folder))}")
