from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from optimum_grasprune import GRASPConfig, load_pruned_model
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
QUICK = ("--num-samples", 4, "--seq-len", 24, "--epochs", 1)


def export(cli: Cli, model: Path, corpus: Path, output: Path, *options: object) -> Outcome:
    return cli("export", "-m", model, "--dataset", corpus, *QUICK, *options, output)


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['optimum-cli', *{arguments!r}]\n"
        "from optimum.commands.optimum_cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {heavy!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    heavy = {"torch", "transformers", "vllm"}
    # The options of a command are made from the fields of pydantic classes, and only for the command that runs.
    for arguments, absent in (
        (["--help"], heavy | {"pydantic", "optimum_grasprune"}),
        (["env", "--help"], {"pydantic", "optimum_grasprune"}),
        (["grasprune", "--help"], heavy | {"pydantic", "optimum_grasprune"}),
        (["grasprune", "export", "--help"], heavy),
        (["grasprune", "compare", "--help"], heavy),
        (["grasprune", "evaluate", "--help"], heavy),
        (["grasprune", "inspect", "--help"], heavy),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments, heavy=absent)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert arguments[0] == "env" or "grasprune" in done.stdout


@pytest.mark.parametrize("command", ["compare", "export", "evaluate", "inspect"])
def test_every_command_has_help_with_an_example(cli: Cli, command: str) -> None:
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert f"example:\n  optimum-cli grasprune {command} " in outcome.out
    assert "--json FILE" in outcome.out


def options_in(help_text: str) -> list[str]:
    """The options of a help page in the order in which it describes them."""
    return re.findall(r"^  (?:-\w[^-]*)?--([a-z-]+)", help_text.partition("\n\n")[2], re.MULTILINE)


OF_EXPORT = ("method", "keep_ratio")


@pytest.mark.parametrize(("command", "absent"), [("export", ()), ("compare", OF_EXPORT)])
def test_options_are_the_fields_of_the_config(cli: Cli, command: str, absent: tuple[str, ...]) -> None:
    help_text = cli(command, "--help").out
    options = {name.replace("-", "_") for name in options_in(help_text)}
    assert options & set(GRASPConfig.model_fields) == set(GRASPConfig.model_fields) - set(absent)
    for name in options & set(GRASPConfig.model_fields):
        default = GRASPConfig.model_fields[name].default
        assert default in (None, False) or f"(default: {default})" in " ".join(help_text.split())


def test_everyday_options_come_first(cli: Cli) -> None:
    options = options_in(cli("export", "--help").out)
    everyday = ("recipe", "keep-ratio", "kv-keep-ratio", "method", "compensation", "dataset", "seed", "dtype", "device")
    advanced = ("pattern", "ffn-multiple-of", "text-column", "epochs", "search-trials", "damping", "scale-samples")
    assert max(map(options.index, everyday)) < min(map(options.index, advanced))


def test_perplexity_in_a_precision_of_choice(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    losses, options = {}, ("--dataset", corpus_file, "--seq-len", 32, "--num-samples", 5)
    for dtype, precision, stored in (("auto", "fp32", "float32"), ("bfloat16", "bf16", "bfloat16")):
        outcome = cli("evaluate", "-m", model_folder, *options, "--dtype", dtype, "--json", tmp_path / "result.json")
        assert outcome.code == 0 and f"predictions, {precision}" in outcome.out
        (measured,) = json.loads((tmp_path / "result.json").read_text())["models"]
        assert measured["dtype"] == stored
        losses[dtype] = measured["loss"]
    assert losses["auto"] != losses["bfloat16"] == pytest.approx(losses["auto"], rel=0.05)


def test_export_evaluate_inspect(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    output, result = tmp_path / "pruned", tmp_path / "result.json"
    outcome = export(cli, model_folder, corpus_file, output, "--keep-ratio", "0.6", "--json", result)
    assert outcome.code == 0, outcome.error_lines
    assert "prunable parameters" in outcome.out and "asked: at most" in outcome.out
    assert "not all FFN widths are multiples of 8" in " ".join(outcome.out.split())
    record = json.loads(result.read_text())
    assert record["budget"]["kept"]["prunable"] <= 0.6
    assert record["recipe"]["epochs"] == 1

    options = ("--dataset", corpus_file, "--seq-len", 32, "--num-samples", 5)
    outcome = cli("evaluate", "-m", output, "--dense", model_folder, *options, "--json", result)
    assert outcome.code == 0, outcome.error_lines
    assert "5 windows of 32 tokens, 155 predictions, fp32" in outcome.out
    dense, pruned = json.loads(result.read_text())["models"]
    assert (dense["model"], pruned["model"]) == (str(model_folder), str(output))
    assert pruned["parameters"] < dense["parameters"] and pruned["perplexity"] > 1

    outcome = cli("inspect", "-m", output, "--json", result)
    assert outcome.code == 0, outcome.error_lines
    content = json.loads(result.read_text())
    assert content["parameters"] == record["budget"]["pruned"]["parameters"]
    assert content["kv_bytes_per_token"] == 4 * record["budget"]["pruned"]["kv_elements_per_token"]
    assert sum(layer["parameters"] for layer in content["layers"]) == content["prunable_parameters"]


def test_inspect_dense_model(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert cli("inspect", "-m", model_folder, "--json", result).code == 0
    content = json.loads(result.read_text())
    assert [layer["ffn_channels"] for layer in content["layers"]] == [48, 48, 48]
    assert [layer["kv_heads"] for layer in content["layers"]] == [2, 2, 2]
    assert content["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4
    assert content["budget"] is None


def test_replaying_a_plan(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert export(cli, model_folder, corpus_file, first).code == 0
    assert cli("export", "-m", model_folder, "--plan", first / "grasp_config.json", second).code == 0
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def refused(outcome: Outcome, output: Path, message: str) -> None:
    """One line on standard error, exit code 2, and nothing where the output would have been, nor beside it."""
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]
    assert outcome.error_lines[0].startswith("optimum-cli grasprune export: error: ")
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-ratio", "0"), "--keep-ratio 0: input should be greater than 0"),
        (("--keep-ratio", "1.2"), "--keep-ratio 1.2: input should be less than or equal to 1"),
        (("--keep-ratio", "nan"), "--keep-ratio nan: input should be a finite number"),
        (("--keep-ratio", "half"), "--keep-ratio half: input should be a valid number"),
        (("--keep-ratio", "0.02"), "--keep-ratio 0.02: too small for at least 1 FFN channels a layer"),
        (
            ("--budget", "total", "--keep-ratio", "0.3"),
            "parameters that are never pruned; the nearest feasible value is",
        ),
        (("--kv-keep-ratio", "0.1"), "--kv-keep-ratio 0.1: too small for"),
        (("--kv-multiple-of", "3"), "--kv-multiple-of 3: no multiple of it"),
        (("--seq-len", "999"), "--seq-len 999: the model reads at most 128 tokens"),
        (("--num-samples", "0"), "--num-samples 0: input should be greater than or equal to 1"),
        (("--epochs", "many"), "--epochs many: input should be a valid integer"),
        (("--dtype", "int8"), "--dtype int8: input should be 'auto'"),
        (("--device", "abacus"), "--device abacus: "),
        (("--method", "magic"), "--method magic: no such method; there are "),
        (("--pattern", "3:5"), "--pattern 3:5: input should be 'units'"),
        (("--method", "magnitude", "--pattern", "2:4"), "--pattern 2:4: magnitude supports only units"),
        (("--allocation", "uniform"), "--allocation uniform: grasprune supports only global"),
        (("--compensation", "prayer"), "--compensation prayer: input should be"),
        (("--damping", "0"), "--damping 0: input should be greater than 0"),
        (("--start", "hot"), "--start hot: input should be 'zero' or 'fisher'"),
        (("--num-samples", "99999999", "--kl-weight", "0"), "different sequences of 24"),
        (("--recipe", "grandma"), "--recipe grandma: no such recipe; there are quick, default, thorough, paper"),
        (("--dataset", "/nowhere/corpus.txt"), "--dataset /nowhere/corpus.txt: no such file"),
        (("--dataset-split", "[oops]"), "--dataset-split [oops]: should look like"),
        (("--json", "/nowhere/result.json"), "--json /nowhere/result.json: cannot be written"),
        (("--plan", "/nowhere/grasp_config.json"), "holds no pruning plan"),
    ],
)
def test_bad_options(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    refused(export(cli, model_folder, corpus_file, tmp_path / "out", *options), tmp_path / "out", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"too short", "has 9 tokens, less than one sequence of 24"),
        (b"caf\xe9 " * 100, "is not UTF-8: byte 3 cannot be read"),
    ],
)
def test_bad_corpora(cli: Cli, model_folder: Path, tmp_path: Path, content: bytes, message: str) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content)
    refused(export(cli, model_folder, corpus, tmp_path / "out"), tmp_path / "out", message)


def write_config(folder: Path, **values: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_bad_models(cli: Cli, corpus_file: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encoder = write_config(tmp_path / "bert", model_type="bert", architectures=["BertForMaskedLM"])
    other = write_config(tmp_path / "gpt2", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for model, message in (
        (tmp_path / "missing", "missing does not exist"),
        (encoder, "is not a causal language model: its architecture is BertForMaskedLM"),
        (other, "model type 'gpt2' is not supported; supported are: LLaMA"),
        (broken, "the configuration of"),
        (tmp_path, "has no config.json"),
    ):
        refused(export(cli, model, corpus_file, out), out, message)


def test_damaged_weights(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in model_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    tensors = load_file(damaged / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for change in (tensors[name][:-1].clone(), None):
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        if change is not None:
            changed[name] = change
        save_file(changed, damaged / "model.safetensors", metadata={"format": "pt"})
        refused(export(cli, damaged, corpus_file, tmp_path / "out"), tmp_path / "out", "the weights of")


def test_bad_outputs(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for output, options, message in (
        (full, (), "is not empty; use --overwrite"),
        (full, ("--overwrite",), "holds something other than a model"),
        (full / "notes.txt", (), "is a file, not a folder"),
        (Path("/proc/nowhere/out"), (), "cannot be written"),
        (model_folder, ("--overwrite",), "is the model that is to be pruned"),
    ):
        outcome = export(cli, model_folder, corpus_file, output, *options)
        assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
        assert message in outcome.error_lines[0]
    assert (full / "notes.txt").read_text() == "mine"
    assert (model_folder / "config.json").is_file()


def test_evaluate_refuses_bad_input(cli: Cli, model_folder: Path, corpus_file: Path) -> None:
    for options, message in (
        (("--seq-len", "1"), "--seq-len 1: input should be greater than or equal to 2"),
        (("--seq-len", "129"), "--seq-len 129: the model"),
        (("--dataset", "/nowhere.txt"), "--dataset /nowhere.txt: no such file"),
        (("--dense", "/nowhere/model"), "the model folder /nowhere/model does not exist"),
    ):
        outcome = cli("evaluate", "-m", model_folder, "--dataset", corpus_file, *options)
        assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
        assert outcome.error_lines[0].startswith("optimum-cli grasprune evaluate: error: ")
        assert message in outcome.error_lines[0]


NO_FILE = "a" * 5000
"""A name that is too long for any file."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "-m", NO_FILE, "out"),
        ("export", "-m", "MODEL", "--method", "magnitude", NO_FILE),
        ("export", "-m", "MODEL", "--method", "magnitude", "--plan", NO_FILE, "out"),
        ("export", "-m", "MODEL", "--method", "magnitude", "--evaluate", f"own=./{NO_FILE}", "out"),
        ("export", "-m", "MODEL", "-c", NO_FILE, "out"),
        ("export", "-m", "MODEL", "--json", f"/{NO_FILE}/a.json", "out"),
        ("evaluate", "-m", "MODEL", "--dense", f"./{NO_FILE}"),
        ("evaluate", "-m", "MODEL", "--dataset", f"./{NO_FILE}"),
        ("evaluate", "-m", "MODEL", "--tasks", "arc_easy", "--include-path", NO_FILE),
        ("evaluate", "-m", "MODEL", "--device", "meta"),
        ("inspect", "-m", f"./{NO_FILE}", "--revision", "main"),
        ("compare", "-m", "MODEL", "--methods", "magnitude", "--keep-ratios", "0.5", NO_FILE),
        ("benchmark", "--dense", "MODEL", "--pruned", f"a=./{NO_FILE}", "--mode", "generate", "out"),
    ],
    ids=lambda arguments: " ".join(word[:20] for word in arguments),
)
def test_names_that_are_too_long_for_a_file(
    cli: Cli, model_folder: Path, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    outcome = cli(*(str(model_folder) if word == "MODEL" else word for word in arguments))
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert not list(tmp_path.iterdir())


def test_a_value_of_several_lines_is_said_in_one(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    outcome = cli("export", "-m", model_folder, "--keep-ratio", "a\nb\x1b[2J", tmp_path / "out")
    assert outcome.error_lines[0].startswith(
        "optimum-cli grasprune export: error: --keep-ratio a\\nb\\x1b[2J: input should be a valid number"
    )
    outcome = cli("export", "-m", "./a\nb\udc80", tmp_path / "out")
    assert outcome.error_lines == [
        "optimum-cli grasprune export: error: the model folder ./a\\nb\\udc80 does not exist"
    ]
    outcome = cli("export", "-m", model_folder, "--dtype", "x" * 999, tmp_path / "out")
    assert f"--dtype {'x' * 200}…: input should be" in outcome.error_lines[0]


def test_a_record_that_names_no_method(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    """As a dummy's does not: what it leaves out is the default."""
    assert cli("export", "-m", model_folder, "--method", "magnitude", tmp_path / "made").code == 0
    file = tmp_path / "made" / "grasp_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "recipe": {}}))
    outcome = cli("export", "-m", model_folder, "--plan", file, tmp_path / "again")
    assert outcome.code == 0, outcome.error_lines
    assert (
        load_pruned_model(tmp_path / "again").num_parameters() == load_pruned_model(tmp_path / "made").num_parameters()
    )
    page = tmp_path / "page.html"
    assert cli("inspect", "-m", tmp_path / "made", "--html", page).code == 0 and page.stat().st_size
