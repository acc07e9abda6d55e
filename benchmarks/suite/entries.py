"""The list of the suite: every check that needs a GPU, cheap ones first, then every benchmark."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

from benchmarks.suite import readings
from benchmarks.suite.entry import BENCHMARK, CHECK, PYTHON, Command, Entry, Goal, Place
from scripts.baseline import GPU
from scripts.runs import PROJECT

STEPS = 20
"""Number of steps of each training run of a check."""

SMALL = (
    *("--n_layer=4", "--n_head=4", "--n_embd=256", "--block_size=256", "--sequence_length=256"),
    *("--batch_size=16", "--gradient_accumulation_steps=1"),
)
TINY = (
    *("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64", "--sequence_length=64"),
    *("--batch_size=4", "--gradient_accumulation_steps=1"),
)

EXACT = 1e-3
"""Nats per token between two identical runs; on a GPU the order of sums may differ."""
KERNELS = 5e-3
"""The same between two attention kernels in bfloat16; on a CPU, sdpa and manual differ by at most
2e-4, with a window and with ALiBi."""
HALF = 0.01
"""The same between half precision and float32; on a CPU at most 3e-4 for bfloat16."""

AT_ONCE = 4
"""Number of concurrent runs on one device."""


def all_entries(place: Place) -> list[Entry]:
    """Every check and benchmark for a machine, in the order in which they run."""
    makers = (
        *(cuda_tests, prefetch, smoke, half_precision, flash, flex_window, flex_alibi),
        *(resume, audit, one_worker, two_workers),
        *(shakespeare, runs_at_once, gpt2, nanogpt, llama),
    )
    return [make(place) for make in makers]


# Checks


def cuda_tests(place: Place) -> Entry:
    """The tests with the marker `gpu`."""
    files = (PROJECT / "tests").rglob("test_*.py")
    marked = sorted(str(path) for path in files if "@pytest.mark.gpu" in path.read_text("utf-8"))
    return _tests("tests that need CUDA", place, 12, *marked, "-m", "gpu")


def prefetch(place: Place) -> Entry:
    """On CUDA, batches are in pinned memory and copied asynchronously."""
    return _tests("prefetched batches", place, 10, "tests/unit/test_data_prefetch.py")


def smoke(place: Place) -> Entry:
    command = (PYTHON, "scripts/smoke_test.py", "config/arch_llama.py", f"--device={place.device}")
    sizes = ("--n_layer=1", "--n_embd=64", "--learning_rate=1e-2") if place.tiny else ()
    return Entry("smoke test", CHECK, 12, (((*command, *sizes),),))


def half_precision(place: Place) -> Entry:
    """bfloat16 and float16 train as float32 does."""
    name, dtypes = "bfloat16 and float16", ("float32", "bfloat16", "float16")
    runs = {dtype: _folder(place, name) / dtype for dtype in dtypes}
    commands = [_train(place, run, f"--dtype={dtype}") for dtype, run in runs.items()]
    return Entry(
        name,
        CHECK,
        12,
        (tuple(commands),),
        functools.partial(readings.differences, runs.pop("float32"), runs),
        tuple(Goal(f"difference_{dtype}", at_most=HALF, at_any_size=True) for dtype in dtypes[1:]),
    )


def flash(place: Place) -> Entry:
    """The flash-attn package compared with torch's kernel, in bfloat16."""
    lacking = ""
    if place.device != "cuda":
        lacking = "flash-attn needs a CUDA device"
    elif importlib.util.find_spec("flash_attn") is None:
        lacking = "the flash-attn package is not installed"
    return _same_kernels("flash-attn", place, "flash", lacking=lacking)


def flex_window(place: Place) -> Entry:
    return _flex("compiled flex, sliding window", place, "--sliding_window=64")


def flex_alibi(place: Place) -> Entry:
    return _flex("compiled flex, ALiBi", place, "--position_encoding=alibi")


def resume(place: Place) -> Entry:
    """A run stopped halfway by max_iters and resumed, compared with an uninterrupted one."""
    name = "resume"
    whole, parted = (_folder(place, name) / part for part in ("whole", "parted"))
    half = _train(place, parted, "--dtype=float32", f"--max_iters={STEPS // 2}")
    rest = (PYTHON, "train.py", f"--resume={parted}", f"--max_iters={STEPS}")
    return Entry(
        name,
        CHECK,
        16,
        ((_train(place, whole, "--dtype=float32"), half), (rest,)),
        functools.partial(readings.differences, whole, {"resumed": parted}),
        (_agrees(0.0 if place.device == "cpu" else EXACT),),
    )


def audit(place: Place) -> Entry:
    """Two runs with the same seed must match bit for bit."""
    flags = (f"--dataset={place.data}", f"--device={place.device}")
    command = (PYTHON, "scripts/reproducibility_audit.py", *flags)
    return Entry("reproducibility audit", CHECK, 18, ((command,),))


def one_worker(place: Place) -> Entry:
    return _fsdp("FSDP of one worker", place, 1)


def two_workers(place: Place) -> Entry:
    lacking = "" if place.device == "cpu" else "two workers on one GPU; it is for CPUs"
    return _fsdp("FSDP of two workers", place, 2, lacking=lacking)


def _folder(place: Place, name: str) -> Path:
    """The folder for an entry's runs."""
    return place.folder / "".join(c if c.isalnum() else "-" for c in name)


def _train(place: Place, run: Path, *flags: str, start: Command = (PYTHON,)) -> Command:
    """A short training run on the suite's data; `flags` override the defaults."""
    own = (
        *(TINY if place.tiny else SMALL),
        *(f"--max_iters={STEPS}", f"--lr_decay_iters={STEPS}", "--warmup_iters=5"),
        # with a higher rate at full size, a loss spike would amplify rounding errors
        f"--learning_rate={3e-3 if place.tiny else 3e-4}",
        *(f"--eval_interval={STEPS}", "--log_interval=1"),
        f"--eval_tokens={256 if place.tiny else 4096}",
        *("--compile=False", f"--device={place.device}", f"--dataset={place.data}"),
        *(f"--out_dir={run.parent}", f"--run_name={run.name}"),
    )
    given = {flag.partition("=")[0] for flag in flags}
    kept = (flag for flag in own if flag.partition("=")[0] not in given)
    return (*start, "train.py", "config/arch_llama.py", *kept, *flags)


def _agrees(tolerance: float) -> Goal:
    return Goal("difference", at_most=tolerance, at_any_size=True)


def _tests(name: str, place: Place, expected: float, *arguments: str) -> Entry:
    results = _folder(place, name) / "results.xml"
    command = (PYTHON, "-m", "pytest", "-n", "0", f"--junitxml={results}", *arguments)
    return Entry(
        name,
        CHECK,
        expected,
        ((command,),),
        functools.partial(readings.test_counts, results, place.device),
        (Goal("tests_passed", at_least=1),),
        lacking="" if importlib.util.find_spec("pytest") else "pytest is not installed",
    )


def _same_kernels(name: str, place: Place, backend: str, *flags: str, lacking: str = "") -> Entry:
    """Training with an attention backend and with SDPA, in bfloat16."""
    reference, other = (_folder(place, name) / each for each in ("sdpa", backend))
    commands = [
        _train(place, run, "--dtype=bfloat16", f"--attention_backend={run.name}", *flags)
        for run in (reference, other)
    ]
    return Entry(
        name,
        CHECK,
        20,
        (tuple(commands),),
        functools.partial(readings.differences, reference, {backend: other}),
        (_agrees(KERNELS),),
        lacking,
    )


def _flex(name: str, place: Place, flag: str) -> Entry:
    """Training on CUDA; on a CPU, where flex has no backward pass, the tests of its forward pass
    with the same key."""
    if place.device == "cuda":
        return _same_kernels(name, place, "flex", flag)
    if place.device != "cpu":
        return _same_kernels(name, place, "flex", flag, lacking=f"no flex on {place.device}")
    key, _, value = flag.removeprefix("--").partition("=")
    wanted = f"test_backends_agree and not gradients and {value if value.isalpha() else key}"
    selected = ("-m", "", "-k", wanted)  # slow ones, too
    entry = _tests(name, place, 20, "tests/contract/test_every_model.py", *selected)
    note = "on a CPU flex has no backward pass: tests of the forward pass, which is not compiled"
    return dataclasses.replace(entry, note=note)


def _fsdp(name: str, place: Place, workers: int, *, lacking: str = "") -> Entry:
    """train.py under torchrun with parallelism=fsdp, compared with a single process."""
    alone, sharded = (_folder(place, name) / each for each in ("alone", "fsdp"))
    many = (PYTHON, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}")
    commands = (
        _train(place, alone, "--dtype=float32"),
        _train(place, sharded, "--dtype=float32", "--parallelism=fsdp", start=many),
    )
    return Entry(
        name,
        CHECK,
        16,
        (commands,),
        functools.partial(readings.differences, alone, {"fsdp": sharded}),
        (_agrees(EXACT),),
        lacking,
    )


# Benchmarks


def shakespeare(place: Place) -> Entry:
    """The baseline recipe with its data and its bar, but in bfloat16, compiled, with fused
    attention."""
    run = _folder(place, "shakespeare") / "run"
    fast = ("--dtype=bfloat16", "--attention_backend=auto", f"--device={place.device}")
    tiny = (
        *("--compile=False", f"--dataset={place.data}", *TINY, f"--max_iters={STEPS}"),
        "--eval_tokens=256",
        *(f"--lr_decay_iters={STEPS}", f"--warmup_iters={STEPS // 4}", "--log_interval=5"),
    )
    where = (f"--out_dir={run.parent}", f"--run_name={run.name}")
    size = tiny if place.tiny else ("--compile=True",)
    return Entry(
        "Shakespeare baseline",
        BENCHMARK,
        60,
        (((PYTHON, "train.py", str(GPU.config), *fast, *size, *where),),),
        functools.partial(readings.best_loss, run),
        (Goal("best_val_loss", at_most=GPU.bar), Goal("seconds", at_most=60)),
        note="bfloat16, fused attention; seconds of the whole process",
    )


def runs_at_once(place: Place) -> Entry:
    """Small runs on one device: first one alone, then several concurrently."""
    name = f"{AT_ONCE} small runs at once"
    runs = [_folder(place, name) / f"run-{index}" for index in range(AT_ONCE + 1)]
    steps = STEPS if place.tiny else 1000
    length = (f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--log_interval={steps // 10}")
    flags = ("--dtype=bfloat16", *length, f"--eval_interval={steps}")
    alone, *several = (_train(place, run, *flags) for run in runs)
    return Entry(
        name,
        BENCHMARK,
        30,
        ((alone,), tuple(several)),
        functools.partial(readings.together, runs[0], runs[1:]),
    )


def gpt2(place: Place) -> Entry:
    """GPT-2 with 124M parameters, T = 1024, compared with nanoGPT if there is a checkout."""
    sizes = (
        *("--n_layer=12", "--n_head=12", "--n_embd=768", "--vocab_size=50304"),
        *("--block_size=1024", "--sequence_length=1024", "--batch_size=32"),
    )
    beside = (f"--against={place.against}",) if place.against else ()
    architecture = ("config/arch_gpt2.py", *beside)
    return _speed("GPT-2 124M, T=1024, bf16", place, 100, 50, architecture, sizes)


def nanogpt(place: Place) -> Entry:
    """The speed of nanoGPT, measured by the entry above in the same process, interleaved."""
    measured = _speed_file(place, gpt2(place).name)
    return Entry(
        "GPT-2 124M against nanoGPT",
        BENCHMARK,
        1,
        (),
        functools.partial(readings.against_nanogpt, measured),
        (Goal("ratio", at_least=1.25),),
        lacking="" if place.against else "no checkout of nanoGPT: give --against=PATH",
        note="measured in the process of the entry above; nanoGPT at its fastest",
    )


def llama(place: Place) -> Entry:
    """LLaMA with 1.4B parameters including its head (1.3B as GPT-2), T = 2048."""
    recipe = ("config/arch_llama.py", "config/run_fineweb_1.3b.py")
    sizes = ("--vocab_size=50304", "--batch_size=8")
    return _speed("LLaMA 1.3B, T=2048, bf16", place, 100, 55, recipe, sizes)


def _speed(
    name: str, place: Place, expected: float, mfu: float, recipe: Command, sizes: Command
) -> Entry:
    """benchmarks/throughput.py on a recipe."""
    results = _speed_file(place, name)
    tiny = (*TINY, "--vocab_size=300", "--compile=False", "--rounds=2", "--steps=1")
    full = (*sizes, "--gradient_accumulation_steps=1", "--compile=True")
    common = ("--dtype=bfloat16", f"--device={place.device}", f"--out={results}")
    command = (PYTHON, "benchmarks/throughput.py", *recipe, *(tiny if place.tiny else full))
    return Entry(
        name,
        BENCHMARK,
        expected,
        (((*command, *common),),),
        functools.partial(readings.speed, results),
        (Goal("mfu_percent", at_least=mfu),),
    )


def _speed_file(place: Place, name: str) -> Path:
    return _folder(place, name).with_suffix(".json")
