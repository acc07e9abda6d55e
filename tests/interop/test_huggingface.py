"""Folders: what is read and refused, the export of a run, and runs that start from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import configurator
import train
from configurator import Settings
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer, CharTokenizer
from errors import ConfigError, UserError
from interop import huggingface
from interop.huggingface import load, save
from interop.starting_model import new_settings
from model_presets import PRESETS
from tests.interop.references import reference
from tests.tiny import tiny_model, tokens
from training.checkpoint import list_checkpoints

TEXT = "the cat sat on the mat and looked at the moon. " * 60
QUICK = ("--device=cpu", "--dtype=float32", "--compile=False", "--batch_size=2", "--eval_tokens=64")


def dataset(folder: Path, tokenizer) -> Path:
    documents = [Document("train", [TEXT]), Document("val", [TEXT[:400]])]
    write_dataset(documents, tokenizer, folder, name="text", source="tests", separate=False)
    return folder


def folder_of(path: Path, **keys) -> Path:
    """A model of 300 tokens, enough for bytes, in a folder."""
    model = tiny_model(vocab_size=300, block_size=32, **keys)
    save(model, path)
    return path


def rewritten(path: Path, change) -> Path:
    """A folder whose tensors are changed."""
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors")
    return path


# Files


@torch.no_grad()
def test_weights_in_several_files(tmp_path):
    path = folder_of(tmp_path / "model")
    expected = load(path)(tokens(20))
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, path / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").unlink()
    assert torch.equal(load(path)(tokens(20)), expected)
    (path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no b\.safetensors; only safetensors are"):
        load(path)


@torch.no_grad()
def test_files_of_the_model_without_its_head_and_with_old_tables(tmp_path):
    """As the files of GPT-2 that OpenAI's weights were first published in."""
    path = folder_of(tmp_path / "model")
    expected = load(path)(tokens(20))

    def as_published(tensors):
        old = {name.removeprefix("transformer."): x for name, x in tensors.items()}
        return old | {
            "h.0.attn.bias": torch.ones(1, 1, 32, 32),
            "h.1.attn.masked_bias": torch.ones(1),
        }

    assert torch.equal(load(rewritten(path, as_published))(tokens(20)), expected)


def test_a_pickled_model_is_not_read(tmp_path):
    path = folder_of(tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"has no model\.safetensors; only safetensors are supported"
    ):
        load(path)


def test_a_damaged_file_is_named(tmp_path):
    path = folder_of(tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: "):
        load(path)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = folder_of(tmp_path / "model")

    def damaged(tensors):
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.wte.weight"] = torch.zeros(3, 32)
        return tensors | {"transformer.h.7.ln_1.weight": torch.zeros(32)}

    rewritten(path, damaged)
    with pytest.raises(
        ValueError, match="do not fit the architecture \\(3 differences\\)"
    ) as raised:
        load(path)
    for said in (
        "transformer.ln_f.bias is missing",
        "transformer.h.7.ln_1.weight does not belong to this family",
        "transformer.wte.weight has shape (3, 32), the architecture needs (300, 32)",
    ):
        assert said in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    def damaged(tensors):
        tensors["transformer.h.1.ln_1.weight"][3] = value
        return tensors

    path = rewritten(folder_of(tmp_path / "model"), damaged)
    with pytest.raises(UserError, match=r"NaN or infinite values \(1\)") as raised:
        load(path)
    assert "transformer.h.1.ln_1.weight has 1 of 32" in str(raised.value)


def test_numbers_that_every_model_has_are_checked(tmp_path):
    theirs = reference("Apertus")
    tensors = theirs.state_dict() | {"model.layers.1.mlp.act_fn.beta": torch.tensor(0.4)}
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.act_fn\.beta is 0\.4.*only 0\.5 can"):
        load(SimpleNamespace(config=theirs.config, state_dict=lambda: tensors))


def test_half_precision_files_are_read_into_float32(tmp_path):
    path = folder_of(tmp_path / "model")
    rewritten(path, lambda tensors: {name: x.bfloat16() for name, x in tensors.items()})
    assert {p.dtype for p in load(path).parameters()} == {torch.float32}


def test_precision_is_kept_when_saving(tmp_path):
    model = tiny_model(bias=False, normalization="layernorm_nobias").bfloat16()
    save(model, tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_keys_of_a_run_can_be_set_when_loading(tmp_path):
    path = folder_of(tmp_path / "model")
    assert load(path).config.dropout == 0
    assert load(path, dropout=0.2).config.dropout == 0.2
    with pytest.raises(ConfigError, match="unknown key 'n_heads'"):
        load(path, n_heads=3)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name another folder"):
        save(tiny_model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_written_of_what_cannot_be_expressed(tmp_path):
    with pytest.raises(ConfigError, match="position_encoding='alibi' cannot be expressed by"):
        save(tiny_model(position_encoding="alibi"), tmp_path / "model")
    llama = PRESETS["llama"].keys
    with pytest.raises(ConfigError) as raised:
        save(tiny_model(**llama, n_kv_head="2+4"), tmp_path / "model")
    message = "n_kv_head='2+4' cannot be expressed by llama, which would make it 2."
    assert [problem.message for problem in raised.value.problems] == [message]
    assert not (tmp_path / "model").exists()


# The export of a run

SIZES = ("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32")


def trained(tmp_path: Path, tokenizer, *flags: str) -> Path:
    data = dataset(tmp_path / "data", tokenizer)
    where = (f"--dataset={data}", f"--out_dir={tmp_path / 'out'}", "--run_name=run")
    train.main([*flags, *SIZES, *QUICK, *where, "--max_iters=3"])
    return tmp_path / "out"


def test_export_of_a_run(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    out = trained(tmp_path, ByteTokenizer(), "--arch_preset=llama")
    capsys.readouterr()
    huggingface.main(["export", "run", str(tmp_path / "model"), f"--out_dir={out}"])
    assert "config.json, model.safetensors, tokenizer.json" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == 256
    idx = torch.tensor([tokenizer("The móon.")["input_ids"]])
    assert idx.tolist() == [list("The móon.".encode())]
    assert torch.allclose(theirs(idx).logits, load(tmp_path / "model")(idx), atol=1e-5)


def test_a_gpt2_says_its_length_to_llama_cpp_too(tmp_path):
    config = json.loads((folder_of(tmp_path / "model") / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 32


def test_export_says_where_no_tokenizer_is_written(tmp_path, capsys):
    out = trained(tmp_path, CharTokenizer(TEXT))
    huggingface.main(["export", "latest", str(tmp_path / "model"), f"--out_dir={out}"])
    said = capsys.readouterr().out
    assert "No tokenizer is written: transformers has no equivalent of 'chars'." in said
    held = sorted(file.name for file in (tmp_path / "model").iterdir())
    assert held == ["config.json", "model.safetensors"]


def test_export_as_another_family_and_of_no_run(tmp_path):
    out = trained(tmp_path, ByteTokenizer(), "--arch_preset=llama")
    argv = ["export", "run", str(tmp_path / "model"), f"--out_dir={out}"]
    with pytest.raises(ConfigError, match="by gpt2, which would make it"):
        huggingface.main([*argv, "--family=gpt2"])
    huggingface.main([*argv, "--family=mistral"])
    assert '"model_type": "mistral"' in (tmp_path / "model" / "config.json").read_text()
    with pytest.raises(ValueError, match="'walk' is neither a run under"):
        huggingface.main(["export", "walk", str(tmp_path / "other"), f"--out_dir={out}"])


# Runs that start from a folder


def settings_of(argv: list[str]) -> Settings:
    return new_settings(configurator.read(argv))


def start_from(model: Path, tmp_path: Path, *flags: str) -> Path:
    where = (f"--dataset={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}", "--run_name=run")
    train.main([f"--init_from={model}", *QUICK, *where, *flags])
    return tmp_path / "out" / "run"


def log_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_run_starts_with_the_weights_of_a_folder(tmp_path):
    dataset(tmp_path / "data", ByteTokenizer())
    model = folder_of(tmp_path / "model", position_encoding="rope", weight_tying=False)
    run = start_from(model, tmp_path, "--max_iters=2", "--learning_rate=1e-9", "--eval_interval=1")
    ours, config = load(model), log_of(run)["config"]
    assert config["init_from"] == str(model)
    assert (config["arch_preset"], config["vocab_size"]) == ("custom", 300)
    assert config["sequence_length"] == 32
    saved = load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    for name, weight in ours.named_parameters():
        assert torch.allclose(saved[name], weight, atol=1e-6), name


def test_a_run_from_a_folder_goes_on_without_it(tmp_path):
    dataset(tmp_path / "data", ByteTokenizer())
    model = folder_of(tmp_path / "model")
    start_from(model, tmp_path, "--max_iters=2", "--eval_interval=1")
    model.rename(tmp_path / "gone")
    where = (f"--dataset={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}")
    train.main([f"--resume={tmp_path / 'out' / 'run'}", *QUICK, *where, "--max_iters=4"])
    assert log_of(tmp_path / "out" / "run")["config"]["max_iters"] == 4


def test_a_long_model_is_trained_on_short_sequences(tmp_path):
    save(tiny_model(vocab_size=300, block_size=1024), tmp_path / "model")
    settings = settings_of([f"--init_from={tmp_path / 'model'}"])
    assert (settings.model.block_size, settings.training.sequence_length) == (1024, 256)


def test_dropout_and_backend_are_the_runs_to_choose(tmp_path):
    model = folder_of(tmp_path / "model")
    settings = settings_of(
        [f"--init_from={model}", "--dropout=0.2", "--attention_backend=manual", "--n_layer=2"]
    )
    assert (settings.model.dropout, settings.model.attention_backend) == (0.2, "manual")
    assert settings.origins["n_embd"] == f"init_from {model}"
    assert settings.origins["dropout"] == "--dropout"


def test_chunks_are_the_runs_to_choose(tmp_path):
    keys = {"mixer": "mamba2", "ffn_type": "none", "normalization": "rmsnorm", "bias": False}
    model = folder_of(tmp_path / "model", **keys, mamba_head_dim=8)
    settings = settings_of([f"--init_from={model}", "--mamba_chunk=32"])
    assert settings.model.mamba_chunk == 32
    with pytest.raises(ConfigError, match="mamba_state_dim=32, but the model of init_from"):
        settings_of([f"--init_from={model}", "--mamba_state_dim=32"])


def test_what_contradicts_the_folder_is_refused(tmp_path):
    model = folder_of(tmp_path / "model")
    with pytest.raises(ConfigError) as raised:
        settings_of([f"--init_from={model}", "--n_layer=3", "--arch_preset=llama"])
    said = [problem.message for problem in raised.value.problems]
    assert said == [
        f"--n_layer: n_layer=3, but the model of init_from={str(model)!r} has n_layer=2; drop it, "
        "or train another model without init_from.",
        f"--arch_preset: arch_preset has no effect with init_from={str(model)!r}, which "
        "determines the architecture; drop one.",
    ]


def test_the_rate_of_router_biases_is_the_runs_to_choose(tmp_path):
    def folder(name, **keys):
        model = {"ffn_type": "moe", "ffn_hidden": 20, "n_experts": 4, **keys}
        return folder_of(tmp_path / name, **{**PRESETS["llama"].keys, **model})

    scored = {"router_score": "sigmoid", "router_bias_rate": 0.01, "n_shared_experts": 1}
    biased, plain = folder("biased", **scored), folder("plain")
    settings = settings_of([f"--init_from={biased}", "--router_bias_rate=0.02"])
    assert settings.model.router_bias_rate == 0.02
    for path, rate in ((biased, 0.0), (plain, 0.02)):
        with pytest.raises(ConfigError, match=f"router_bias_rate={rate}, but the model of"):
            settings_of([f"--init_from={path}", f"--router_bias_rate={rate}"])


def test_a_pattern_however_it_is_spelled_is_that_of_the_folder(tmp_path):
    keys = {"normalization": "rmsnorm", "ffn_type": "swiglu", "bias": False}
    turned = "rope+none"
    model = folder_of(tmp_path / "model", **keys, position_encoding=turned, rope_theta=100.0)
    for same in (turned, "rope*1+none*1", "rope+none*"):
        flags = [f"--init_from={model}", f"--position_encoding={same}", "--rope_theta=1e2"]
        layers = settings_of(flags).model.layers
        assert [layer.position_encoding for layer in layers] == ["rope", "none"]
    with pytest.raises(ConfigError) as raised:
        settings_of([f"--init_from={model}", "--position_encoding=none+rope"])
    assert "has position_encoding=rope+none; drop it" in str(raised.value)


def test_keys_that_the_folder_has_no_use_for_are_refused(tmp_path):
    model = folder_of(tmp_path / "model")
    with pytest.raises(ConfigError, match="rope_theta=100.0 belongs to position_encoding=rope"):
        settings_of([f"--init_from={model}", "--rope_theta=100.0"])
    with pytest.raises(ConfigError, match="rope_theta=100.0 belongs to position_encoding=rope"):
        load(model, rope_theta=100.0)


@pytest.mark.parametrize("where", ["nowhere", "resume", "gpt2"])
def test_no_such_folder(where):
    with pytest.raises(
        ConfigError, match="init_from takes a folder written by transformers'"
    ) as raised:
        settings_of([f"--init_from={where}"])
    assert f"--init_from: {where}/config.json cannot be read" in str(raised.value)


def test_a_vocabulary_too_small_for_the_data(tmp_path):
    dataset(tmp_path / "data", ByteTokenizer())
    save(tiny_model(), tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"vocab_size=61 is too small for the 257 tokens"
    ) as raised:
        start_from(tmp_path / "model", tmp_path)
    assert "prepare the data with the tokenizer of init_from=" in str(raised.value)
