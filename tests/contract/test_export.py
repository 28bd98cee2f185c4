"""An exported checkpoint is a model directory that transformers loads, with the very weights that were trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.settings import load_run
from learner.export import main
from learner.forward.model import load_policy
from learner.packing.layout import Layout
from learner.storage.checkpoint import Checkpoint, CheckpointStore, Progress
from learner.trainer import Trainer
from tests.contract.learner_rig import ROOT, checkpoint_of, save_tiny_model, write_run

TOKENIZER = {"tokenizer.json": "{}", "tokenizer_config.json": '{"model_max_length": 64}', "merges.txt": "a b"}


def trained_run(directory: Path, *, tied: bool = False, steps: tuple[int, ...] = (5,)) -> Path:
    """A run whose learner has left checkpoints of a policy that is not its base model any more."""
    directory.mkdir()
    save_tiny_model(directory / "model", tied=tied)
    for name, text in TOKENIZER.items():
        (directory / "model" / name).write_text(text)
    run_file = write_run(directory)
    settings = load_run(run_file)
    trainer = Trainer(load_policy(settings, torch.device("cpu")), Layout(64))
    for step in steps:
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.001)
        CheckpointStore(settings.checkpoints_directory, 9).commit(
            Checkpoint(Progress(step, step + 1, 3, step, 0, (), (), (), ()), trainer.tensors())
        )
    return run_file


def saved(run_file: Path, step: int) -> dict[str, Any]:
    return load_file(checkpoint_of(run_file.parent / "run", step) / "model.safetensors")


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_an_export_with_the_weights_of_the_checkpoint(
    tmp_path: Path, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = trained_run(tmp_path / "home", tied=tied)
    target = tmp_path / "exports" / "model"
    assert main([str(run_file), "--to", str(target)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("step 5 (weight version 6, revision 3) is in ")
    assert "float32" in said
    loaded: Any = AutoModelForCausalLM.from_pretrained(target)
    assert loaded.dtype == torch.float32
    assert type(loaded).__name__ == "LlamaForCausalLM"
    state = loaded.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in saved(run_file, 5).items())
    if tied:
        assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert {name: (target / name).read_text() for name in TOKENIZER} == TOKENIZER
    assert sorted(p.name for p in target.iterdir() if p.name not in TOKENIZER) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert [p.name for p in target.parent.iterdir()] == ["model"], "nothing unfinished is left beside it"


def test_bfloat16_weights_say_so_in_their_configuration(tmp_path: Path) -> None:
    run_file = trained_run(tmp_path / "home")
    assert main([str(run_file), "--to", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(state[name].equal(tensor.bfloat16()) for name, tensor in saved(run_file, 5).items())


def test_the_newest_undamaged_checkpoint_is_taken_or_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = trained_run(tmp_path / "home", steps=(5, 10, 15))
    broken = checkpoint_of(run_file.parent / "run", 15)
    (broken / "model.safetensors").write_bytes(b"")
    assert main([str(run_file), "--to", str(tmp_path / "newest")]) == 0
    assert main([str(run_file), "--to", str(tmp_path / "named"), "--step", "5"]) == 0
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == ["step 10", "step 5"]
    assert broken.exists(), "a learner that runs sets it aside, an export changes nothing"
    assert main([str(run_file), "--to", str(tmp_path / "broken"), "--step", "15"]) == 2
    assert "step-000015 is damaged" in capsys.readouterr().err
    assert main([str(run_file), "--to", str(tmp_path / "none"), "--step", "7"]) == 2
    assert "there is no checkpoint of step 7" in (complaint := capsys.readouterr().err)
    assert "choose one of [5, 10, 15]" in complaint


def test_a_directory_that_holds_anything_is_refused_and_an_empty_one_is_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = trained_run(tmp_path / "home")
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    (full / "precious").mkdir(parents=True)
    empty.mkdir()
    file.write_text("precious")
    for target in (full, file):
        assert main([str(run_file), "--to", str(target)]) == 2
        assert "name another one, or remove it" in capsys.readouterr().err
    assert [p.name for p in full.iterdir()] == ["precious"]
    assert file.read_text() == "precious"
    assert main([str(run_file), "--to", str(empty)]) == 0
    assert (empty / "config.json").exists()


def test_what_is_missing_is_said_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "out")
    assert main([str(tmp_path / "absent.toml"), "--to", target]) == 2
    assert "cannot read the run file" in capsys.readouterr().err
    run_file = write_run(tmp_path / "home")
    assert main([str(run_file), "--to", target]) == 2
    assert "train until the first one, or order one with `tributary checkpoint`" in capsys.readouterr().err
    run_file = trained_run(tmp_path / "other")
    other = save_tiny_model(tmp_path / "wide")
    config = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 1}
    (other / "config.json").write_text(json.dumps(config))
    run_file.write_text(run_file.read_text().replace(str(tmp_path / "other" / "model"), str(other)))
    assert main([str(run_file), "--to", target]) == 2
    assert "does not fit model.path" in capsys.readouterr().err
    assert not Path(target).exists()


def test_a_disk_that_does_not_take_it_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = trained_run(tmp_path / "home")
    (tmp_path / "file").write_text("")
    assert main([str(run_file), "--to", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["too long", "circle", "nobody", "unreadable", "read-only"])
def test_a_directory_that_cannot_be_looked_at_or_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run_file = trained_run(tmp_path / "home")
    target = tmp_path / "closed" / "out"
    match kind:
        case "too long":
            target = tmp_path / ("x" * 300)
        case "circle":
            (tmp_path / "circle").symlink_to(tmp_path / "circle")
            target = tmp_path / "circle" / "out"
        case "nobody":
            target = Path("~nobody-of-this-name/out")
        case "unreadable":  # said by hand, as nothing is closed to root
            deny(monkeypatch, "exists", target)
        case _:
            deny(monkeypatch, "mkdir", target.with_name(".out.unfinished"))
    assert main([str(run_file), "--to", str(target)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("export: ")
    assert str(target) in said
    assert said.count("\n") == 1


def deny(monkeypatch: pytest.MonkeyPatch, method: str, place: Path) -> None:
    """Have the system refuse this of one path."""
    real = getattr(Path, method)

    def refusing(path: Path, *args: Any, **options: Any) -> Any:
        if path == place:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, method, refusing)


def test_the_tokenizer_of_a_hub_name_comes_from_the_cache(tmp_path: Path) -> None:
    run_file = trained_run(tmp_path / "home")
    repository = tmp_path / "hub" / "models--some--model"
    revision = "0123456789012345678901234567890123456789"
    (repository / "snapshots").mkdir(parents=True)
    (tmp_path / "home" / "model").rename(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    run_file.write_text(run_file.read_text().replace(str(tmp_path / "home" / "model"), "some/model"))
    done = subprocess.run(
        [sys.executable, "-m", "learner.export", str(run_file), "--to", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: (tmp_path / "out" / name).read_text() for name in TOKENIZER} == TOKENIZER


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--to DIR" in told
    assert "Exit codes: 0 done, 2 not done" in told
    with pytest.raises(SystemExit) as ended:
        main(["run.toml"])
    assert ended.value.code == 2
