"""The plan: estimates, what is left out, the disk, the steps."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest

import configurator
from cloud import disk, plan, run_work, sendable, sweep_work
from cloud.disk import disk_gb
from cloud.make_work import make_work
from cloud.package import Contents
from cloud.plan import Estimates, choose, plan_lines, refuse_if_none
from cloud.redaction import Redactor
from cloud.request import IMAGE, Request, read_request
from cloud.runpod_types import Offer
from cloud.work import Work
from errors import UserError
from interop.huggingface import load, save
from tests.cloud.conftest import RUN, Cloud, needs_once
from tests.interop.test_adapter_runs import LORA, Place
from tests.prepared import REPOSITORY
from tests.tiny import VARIANTS, tiny_model
from training.run_directory import locked, process_in

A100 = Offer("NVIDIA A100-SXM4-80GB", "EU-RO-1", 80 * 10**9, 2.0, "High")
A100_FLOPS = 312e12
"""Dense bfloat16 peak by its data sheet, in FLOP/s."""


@pytest.fixture(autouse=True)
def _needs_are_known(monkeypatch) -> None:
    """Tracing a step of the model takes a second."""
    monkeypatch.setattr(plan, "needs_on_gpus", needs_once)


def hours(work: Work, *flags: str, offer: Offer = A100) -> float:
    """Estimated hours of training, the start left out."""
    candidate = Estimates(work, read_request(flags)).candidate(offer)
    return candidate.hours - 600 / 3600


def test_a_run_takes_its_flops_at_the_peak_times_mfu(work: Work):
    run = dataclasses.replace(work, flops=A100_FLOPS * 0.5 * 3600)
    assert hours(run, "--mfu=0.5") == pytest.approx(1.0)
    assert hours(dataclasses.replace(run, gpus_per_run=4), "--mfu=0.5") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("runs", "at_a_time", "expected"), [(1, 1, 1.0), (8, 4, 2.0), (5, 4, 2.0), (3, 8, 1.0)]
)
def test_a_sweep_goes_in_rounds(runs, at_a_time, expected, work: Work):
    """A fifth run needs a round of its own, and eight GPUs do not speed up three runs."""
    total = runs * A100_FLOPS * 0.4 * 3600
    sweep = dataclasses.replace(work, runs=runs, runs_at_a_time=at_a_time, flops=total)
    assert hours(sweep) == pytest.approx(expected)
    timed = dataclasses.replace(sweep, flops=None, minutes=60.0 * runs)
    if runs > 1:
        assert hours(timed) == pytest.approx(expected)


def test_minutes_limit_a_run_however_many_gpus_it_has(work: Work):
    run = dataclasses.replace(work, flops=1e30, minutes=30.0, gpus_per_run=8)
    assert hours(run) == pytest.approx(0.5)


def test_dollars_are_hours_times_the_price_of_the_pod(work: Work):
    run = dataclasses.replace(work, flops=A100_FLOPS * 0.4 * 3600)
    candidate = Estimates(run, Request(argv=())).candidate(A100)
    assert candidate.dollars == pytest.approx(2.0 * (1 + 1 / 6))


def test_a_gpu_that_is_too_small_is_left_out(work: Work):
    small = dataclasses.replace(A100, memory=10**6)
    assert Estimates(work, Request(argv=())).candidate(small).startswith("too small: ")


def test_an_amd_gpu_needs_an_image_for_it(work: Work):
    """The default image and requirements.txt have CUDA."""
    amd = Offer("AMD Instinct MI300X OAM", "EU-RO-1", 192 * 10**9, 2.0, "High")
    assert "ROCm" in Estimates(work, Request(argv=())).candidate(amd)
    request = read_request(["--image=rocm/pytorch:latest"])
    assert Estimates(work, request).candidate(amd).offer == amd


def test_cuda_versions_are_asked_for_with_the_own_image_alone():
    assert read_request([]).cuda
    assert read_request([f"--image={IMAGE}"]).cuda == ()
    assert read_request(["--cuda=12.8,12.9"]).cuda == ("12.8", "12.9")


def test_the_cuda_versions_are_those_of_the_torch_that_is_installed():
    """PyPI's torch 2.13.0 is built for CUDA 13.0; look again when the version changes."""
    assert "torch==2.13.0\n" in (REPOSITORY / "requirements.txt").read_text()
    assert read_request([]).cuda[0] == "13.0"


def test_the_cuda_versions_and_the_disk_reach_the_pod(cloud: Cloud):
    assert cloud.deploy("--cuda=12.8,13.0", "--disk=77").status == 0
    (pod,) = cloud.world.rented
    assert (pod.cuda, pod.disk_gb) == (["12.8", "13.0"], 77)
    assert cloud.deploy("--image=a/b:c").status == 0
    assert cloud.world.rented[1].cuda == []


def test_the_nearest_miss_is_named(work: Work):
    request = read_request(["--max_cost=0.1"])
    choice = choose([A100], request, Estimates(work, request))
    with pytest.raises(UserError, match=r"no GPU on offer fits: 1 left out, such as NVIDIA A100"):
        refuse_if_none(choice, request)


def test_the_plan_says_all_that_is_done(work: Work):
    request = read_request(["--max_cost=5"])
    lines = list(plan_lines(work, request, choose([A100], request, Estimates(work, request))))
    text = "\n".join(lines)
    for said in ("Plan: tried", "limits     $5.00, 4 h", "results    out/tried", "40 % MFU"):
        assert said in text
    assert lines[-1].split()[:4] == ["1", "x", "NVIDIA", "A100-SXM4-80GB"]


def test_a_long_plan_is_shortened(work: Work):
    request = Request(argv=())
    offers = [dataclasses.replace(A100, region=f"R-{number}") for number in range(40)]
    offers += [dataclasses.replace(offer, gpu="NVIDIA Unheard Of") for offer in offers]
    choice = choose(offers, request, Estimates(work, request))
    lines = list(plan_lines(work, request, choice))
    assert sum(line.startswith("  1 x ") for line in lines) == 30
    assert lines[-2:] == [
        "  and 10 more, which cost more",
        "  left out: NVIDIA Unheard Of in 40 places: peak speed unknown",
    ]


# The disk


def test_the_disk_holds_checkpoints_code_data_and_what_is_carried(work: Work, tmp_path: Path):
    carried = tmp_path / "carried"
    carried.mkdir()
    with (carried / "model").open("wb") as file:
        file.truncate(2 * 10**9)
    empty = Contents({}, (tmp_path, "none"), {})
    alone = disk_gb(work.settings, 1, empty)
    assert alone == disk.IMAGE_GB + disk.INSTALLED_GB + 1
    assert disk_gb(work.settings, 1, dataclasses.replace(empty, carried={"": carried})) == alone + 6
    many = disk_gb(work.settings, 1000, empty)
    assert many > 10 * alone


def test_the_disk_holds_a_dataset_that_is_prepared_in_the_pod(work: Work, monkeypatch):
    monkeypatch.setattr(disk, "_prepared_bytes", lambda dataset: 18 * 10**9)
    alone = disk_gb(work.settings, 1, Contents({}, (Path(), "sent"), {}))
    assert disk_gb(work.settings, 1, Contents({}, None, {})) == alone + 5 * 18


# The steps


def test_the_run_is_as_train_py_would_have_it(work: Work):
    assert [name for name, _ in work.steps] == ["setup", "gpu", "smoke", "train"]
    _, train = work.steps[-1]
    assert train[:4] == ["python", "train.py", "config/arch_llama.py", "config/run_shakespeare.py"]
    assert {"--run_name=tried", "--resume=auto", "--out_dir=out", "--max_iters=60"} <= set(train)


def test_a_pod_whose_gpus_torch_cannot_use_ends_before_it_trains_on_its_cpu():
    ((name, (_, _, code)),) = sendable.gpu_check("auto", 8)
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()):
        exec(code, {})
    assert name == "gpu"
    assert "GPUs of 8" in ended.value.code
    assert sendable.gpu_check("cpu", 8) == []


def test_several_gpus_are_started_by_torchrun():
    request = read_request([*RUN, "--gpu_count=2"])
    work = make_work(request, Redactor())
    assert work.steps[-1][1][:3] == ["torchrun", "--standalone", "--nproc_per_node=2"]
    assert work.gpus_per_run == 2


def test_the_model_of_init_from_is_estimated_with_its_adapters(tmp_path, monkeypatch):
    save(tiny_model(**VARIANTS["preset llama"]), tmp_path / "model", "llama")
    monkeypatch.setattr(run_work, "sendable", lambda files, plugins, settings: ([], {}))
    flags = [f"--init_from={tmp_path / 'model'}", "--dataset=shakespeare_char"]
    work = make_work(read_request(["config/finetune_lora.py", *flags]), Redactor())
    assert work.settings.model == load(tmp_path / "model").config
    assert work.settings.training.adapter == "lora"


def test_modules_that_a_plugin_imports_are_sent(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_by_a_plugin.py").write_text("import imported_by_that\n")
    (tmp_path / "imported_by_that.py").write_text("VALUE = 1\n")
    plugin = tmp_path / "plugin.py"
    plugins = {str(plugin): "import imported_by_a_plugin\n"}
    settings = dataclasses.replace(configurator.load([]), plugins=plugins)
    given, _ = sendable.sendable([], "", settings)
    names = {path.name for path in given}
    assert names == {"plugin.py", "imported_by_a_plugin.py", "imported_by_that.py"}


@pytest.mark.slow
def test_a_run_to_start_from_that_is_not_sent_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sendable, "in_project", lambda path: path.relative_to(tmp_path))
    place = Place(tmp_path)
    sizes = ("--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--max_iters=1")
    place.train("first", *sizes)
    place.train("tuned", f"--init_from={place.out / 'first'}", *LORA, "--max_iters=1")

    def send(run: str) -> None:
        settings = configurator.load([])
        training = settings.training.changed(init_from=str(place.out / run))
        sendable.sendable([], "", dataclasses.replace(settings, training=training))

    with pytest.raises(UserError, match="is in out/, of which nothing is sent; export it"):
        send("first")
    with pytest.raises(UserError, match="tuned has adapters, and their base is not sent; export"):
        send("tuned")


PLANNED = {"gpus_per_run": 2, "workers": None}


@pytest.mark.parametrize(
    ("gpu_count", "workers", "room"), [(2, None, 1), (8, None, 4), (8, 2, 2), (2, 9, 1)]
)
def test_runs_of_a_sweep_have_gpus_of_their_own(gpu_count, workers, room):
    assert sweep_work._room(PLANNED | {"workers": workers}, gpu_count) == room


def test_a_sweep_whose_runs_need_more_gpus_than_there_are_is_refused():
    with pytest.raises(UserError, match="but the pod has 1 GPUs; use --gpu_count=2 or more"):
        sweep_work._room(PLANNED, 1)


def test_flags_are_replaced_however_they_are_written():
    argv = ["a.py", "--dataset", "x", "--seeds=2", "--dataset=y", "--vary", "b=c,d"]
    assert sweep_work._without(argv, {"dataset"}) == ["a.py", "--seeds=2", "--vary", "b=c,d"]


# Runs that are here


def leave_run(folder: Path) -> Path:
    run = folder / "out/tried"
    (run / "checkpoints/step_00000010").mkdir(parents=True)
    return run


def test_a_run_that_trains_here_is_not_deployed(surroundings):
    with (
        locked(leave_run(surroundings)),
        pytest.raises(UserError, match="is being trained by process"),
    ):
        make_work(read_request(RUN), Redactor())


def test_a_run_that_is_deployed_cannot_be_trained_here(cloud: Cloud, work: Work, monkeypatch):
    run = leave_run(cloud.folder)
    carrying = dataclasses.replace(
        work, contents=dataclasses.replace(work.contents, carried={"": run})
    )
    monkeypatch.setattr("cloud.runpod_deploy.make_work", lambda request, redact: carrying)
    holders = []
    cloud.after(600, lambda: holders.append(process_in(run)))
    assert cloud.deploy().status == 0
    assert holders[0] is not None
    assert process_in(run) is None
