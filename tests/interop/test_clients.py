"""What people use an exported folder with: transformers, lm_eval, llama.cpp.

Each computes what the trained model does. lm_eval and llama.cpp are in requirements-clients.txt.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer, TiktokenTokenizer, Tokenizer
from interop import huggingface
from model_builder import GPT
from tests.measured import assert_within
from tests.parametrized import one_in
from training.trained_model import TrainedModel, load_trained

transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CLIENTS = "see requirements-clients.txt"
TEXT = "the cat sat on the mat and looked at the moon. " * 60
PROMPTS = ["the cat sat ", "moon. "]
NEW_TOKENS = 20
LONGEST = 48
END = ByteTokenizer().end_of_text

ARCHITECTURES = {
    "gpt2": ["--arch_preset=gpt2"],
    "llama": ["--arch_preset=llama", "--n_kv_head=1"],
    "qwen3": ["--arch_preset=llama", "--qk_norm=True"],
}
"""By the family that each is exported as."""


def exported_run(folder: Path, tokenizer: Tokenizer, *flags: str) -> tuple[Path, TrainedModel]:
    """Train until the model writes words, and export it with the command."""
    data, out = folder / "data", folder / "out"
    documents = [Document("train", [TEXT]), Document("val", [TEXT[:400]])]
    write_dataset(documents, tokenizer, data, name="text", source="tests", separate=False)
    sizes = ["--n_layer=2", "--n_head=2", "--n_embd=32", f"--block_size={LONGEST}"]
    quick = ["--device=cpu", "--dtype=float32", "--compile=False", "--eval_tokens=64"]
    schedule = ["--max_iters=100", "--learning_rate=1e-2", "--batch_size=8", "--sample_tokens=0"]
    where = [f"--dataset={data}", f"--out_dir={out}", "--run_name=run"]
    train.main([*flags, *sizes, *quick, *schedule, *where])
    huggingface.main(["export", "run", str(folder / "model"), f"--out_dir={out}"])
    return folder / "model", load_trained("run", out, {})


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request, tmp_path_factory) -> tuple[Path, TrainedModel]:
    """A folder, and the model that it was exported from."""
    folder = tmp_path_factory.mktemp(request.param)
    folder, trained = exported_run(folder, ByteTokenizer(), *ARCHITECTURES[request.param])
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == request.param
    return folder, trained


def greedy(trained: TrainedModel, prompt: str) -> list[int]:
    """The ids of a prompt and of what the trained model continues it with."""
    ids = torch.from_numpy(trained.tokenizer.encode(prompt).astype("int64"))[None]
    return trained.model.generate(ids, NEW_TOKENS, temperature=0)[0].tolist()


# transformers


@pytest.mark.parametrize("use_cache", one_in(2, [True, False]))
def test_generate(exported, use_cache):
    """Prompts of different lengths in a batch, padded on the left."""
    folder, trained = exported
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(prompt) for prompt in PROMPTS]
    made = model.generate(
        **batch, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache, pad_token_id=END
    )
    for row, prompt in zip(made, PROMPTS, strict=True):
        expected = greedy(trained, prompt)
        assert row[-len(expected) :].tolist() == expected
    assert len(set(tokenizer.decode(made[0])[len(PROMPTS[0]) :])) > 4  # it is no constant


def test_pipeline(exported):
    folder, trained = exported
    pipeline = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    made = pipeline(PROMPTS, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = [candidates[0]["generated_text"] for candidates in made]
    assert texts == [trained.tokenizer.decode(greedy(trained, prompt)) for prompt in PROMPTS]


# lm_eval

QUESTIONS = [
    {"question": "the cat sat on", "choices": [" the mat", " the moon"], "answer": 0},
    {"question": "and looked at the", "choices": [" mat and", " moon."], "answer": 1},
]
CHOICE_TASK = {
    "task": "own_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
TEXT_TASK = {
    "task": "own_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


def write_task(folder: Path, task: dict[str, Any], documents: Sequence[dict[str, Any]]) -> None:
    """Write a task with local documents, as lm_eval reads it."""
    data = folder / f"{task['task']}.jsonl"
    data.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    local = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data)},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
    }
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | local, sort_keys=False))


def evaluated(folder: Path, tasks: Path, name: str) -> dict[str, Any]:
    """What lm_eval finds for an exported folder, samples included."""
    lm_eval = pytest.importorskip("lm_eval", reason=CLIENTS)
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=[name],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )


def log_likelihood(model: GPT, ids: Sequence[int], scored: int) -> float:
    """The log-probability of the last tokens, given those before."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
    chosen = log_probs.gather(1, torch.tensor(ids[1:])[:, None])
    return chosen[-scored:].double().sum().item()


def test_lm_eval_scores_answers(exported, tmp_path):
    folder, trained = exported
    write_task(tmp_path, CHOICE_TASK, QUESTIONS)
    found = evaluated(folder, tmp_path, "own_choice")
    samples = sorted(found["samples"]["own_choice"], key=lambda sample: sample["doc_id"])
    for sample, question in zip(samples, QUESTIONS, strict=True):
        for choice, (score, _) in zip(question["choices"], sample["filtered_resps"], strict=True):
            ids = trained.tokenizer.encode(question["question"] + choice).tolist()
            own = log_likelihood(trained.model, ids, len(choice))
            assert_within(abs(float(score) - own), 1e-5, "log-likelihoods in lm_eval, nats")
    assert found["results"]["own_choice"]["acc,none"] == 1.0


def test_lm_eval_scores_text(exported, tmp_path):
    """Text longer than the context: each window scores what the earlier ones did not."""
    folder, trained = exported
    texts = [TEXT[5:150], TEXT[:20]]
    write_task(tmp_path, TEXT_TASK, [{"text": text} for text in texts])
    found = evaluated(folder, tmp_path, "own_text")["results"]["own_text"]
    nats = 0.0
    for text in texts:
        ids = [END, *trained.tokenizer.encode(text).tolist()]
        for start, end in pairwise([*range(0, len(text), LONGEST), len(text)]):
            window = ids[max(0, end - LONGEST) : end + 1]
            nats -= log_likelihood(trained.model, window, end - start)
    own = nats / math.log(2) / sum(map(len, texts))
    assert_within(abs(found["bits_per_byte,none"] - own), 1e-5, "bits per byte in lm_eval")


# llama.cpp

SOURCE = "LLAMA_CPP"
"""The environment variable with the folder of llama.cpp's source, which has its converter."""


@pytest.fixture
def gguf_file(tmp_path, request) -> tuple[Path, TrainedModel]:
    """A model with GPT-2's vocabulary, converted by llama.cpp's script."""
    if SOURCE not in os.environ:
        pytest.skip(f"set {SOURCE} to the source of llama.cpp")
    pytest.importorskip("gguf", reason=CLIENTS)
    flags = ARCHITECTURES[request.param]
    folder, trained = exported_run(tmp_path, TiktokenTokenizer("gpt2"), *flags)
    script = Path(os.environ[SOURCE]) / "convert_hf_to_gguf.py"
    target = tmp_path / "model.gguf"
    command = [sys.executable, str(script), str(folder), "--outtype=f32", f"--outfile={target}"]
    subprocess.run(command, check=True, capture_output=True)
    return target, trained


@pytest.mark.parametrize("gguf_file", ARCHITECTURES, indirect=True)
def test_llama_cpp(gguf_file):
    """Greedy text, and the probabilities of the tokens in it."""
    xllamacpp = pytest.importorskip("xllamacpp", reason=CLIENTS)
    file, trained = gguf_file
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = LONGEST, 1, 1
    request = {"prompt": PROMPTS[0], "max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 1}
    made = xllamacpp.Server(params).handle_completions(request)
    tokens = made["choices"][0]["logprobs"]["content"]
    ids, known = greedy(trained, PROMPTS[0]), len(trained.tokenizer.encode(PROMPTS[0]))
    assert [token["id"] for token in tokens] == ids[known:]
    for end, token in enumerate(tokens, start=known + 1):
        own = log_likelihood(trained.model, ids[:end], 1)
        # llama.cpp rounds more than we do; an eps of 1e-6 in place of 1e-5 makes 1.4e-2
        assert_within(abs(token["logprob"] - own), 5e-3, "log-probabilities in llama.cpp, nats")
