"""Plan and run a fair experiment: which architecture is better, at equal budgets, over seeds.

    python sweep.py config/arch_gpt2.py --vary normalization=layernorm,rmsnorm \\
        --vary ffn_type=standard,swiglu --seeds=3
    python sweep.py --arms config/arch_gpt2.py,config/arch_llama.py --budget tokens=20M --dry_run
    python sweep.py config/arch_gpt2.py --vary bias=False --tune learning_rate=3e-4,1e-3,3e-3

Config files and --key=value are those of train.py (see its --help) and apply to every arm. The
baseline is the given config. Every run is a separate train.py process. Finished runs are kept: the
same command continues after an interruption, retries failed runs, and adds runs for more --seeds.
At the end it prints the comparison of out/sweeps/<name>, as compare_architectures.py does, and
writes it to report.html in that folder. docs/sweeps.md explains the options.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import compare_architectures
import configurator
from cli import CommandParser, run_cli, typed_command
from comparison.formatting import assignments, format_path
from comparison.json_checks import told
from comparison.report.page import write_page
from comparison.runs import RUN_FILE, SWEEP_FILE
from comparison.tables import wrapped
from configurator import Arguments, split_arguments
from errors import ConfigError, Problem, UserError
from experiment.arms import collect_problems
from experiment.budgets import parse_budget
from experiment.engines import (
    THREADS,
    Engine,
    LocalEngine,
    RayEngine,
    gpu_groups,
    visible_gpus,
    worker_environments,
)
from experiment.jobs import ENDED, status_of
from experiment.ladders import make_rungs, parse_ladder
from experiment.manifest import (
    Sweep,
    begun_with_other_code,
    read_sweep,
    refuse_another,
    write_manifest,
)
from experiment.overview import overview
from experiment.plan import Plan, make_plan
from experiment.progress import run_jobs
from experiment.request import DESIGNS, MATCHES, MOST_RUNS, Request, read_lists
from experiment.selection import select
from experiment.series_file import BASELINES, LADDER, Member, Series, write_series
from experiment.series_view import view_series
from experiment.slurm import SlurmEngine, parse_slurm_options
from experiment.timing import seconds_of_run, seconds_to_start
from experiment.tuning import Tuned, allowances
from inference.verdicts import MARGIN
from options import KEYS
from pages.rendering import PAGE_FILE
from training.console import Console
from training.hardware import resolve_device, resolve_dtype
from training.preflight import refuse_machine, share_problems
from training.run_directory import locked
from training.signals import StopRequest
from training.workers import started_as_worker, workers_to_start
from user_files import collect, read_config_file

SEEDS, MAX_SEEDS = 5, 20
"""Default number of seeds per arm, and default maximum with --until_sure."""

ENGINES = ("local", "ray", "slurm")
MOST_WORKERS = 1_000
"""Maximum number of concurrent runs, and of processes per run."""


# The command line


def parser() -> argparse.ArgumentParser:
    typed = typed_command("python sweep.py")
    flags = CommandParser(
        usage=f"{typed} [config.py ...] [--key=value ...] [options]",
        description=__doc__.replace("python sweep.py", typed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="a key and its values, each of which adds an arm; may be repeated",
    )
    flags.add_argument(
        "--arms",
        default="",
        metavar="FILES",
        help=(
            "comma-separated config files, one arm each; the first is the baseline unless the "
            "given config sets an arch_preset or keys are varied"
        ),
    )
    flags.add_argument(
        "--design",
        choices=DESIGNS,
        default="ablation",
        help="ablation: one change at a time; factorial: all combinations (default: %(default)s)",
    )
    flags.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"number of seeds per arm (default {SEEDS}); a sweep has at most {MOST_RUNS:,} runs",
    )
    flags.add_argument(
        "--until_sure",
        action="store_true",
        help="sequential testing: add seeds at scheduled looks (5, 10, 20 ...) and stop each arm "
        "once its verdict is conclusive, instead of using --seeds",
    )
    flags.add_argument(
        "--max_seeds",
        type=int,
        metavar="N",
        help=f"with --until_sure: maximum number of seeds per arm (default {MAX_SEEDS})",
    )
    flags.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        metavar="NATS",
        help="largest difference that counts as equal (default %(default)s)",
    )
    flags.add_argument(
        "--match",
        choices=MATCHES,
        default="active_params",
        help=(
            "count to match with the baseline, within 0.5 %%, by changing the FFN width or "
            "n_embd: parameters used per token, all parameters (these differ for a mixture of "
            "experts), or FLOPs per token (default: %(default)s)"
        ),
    )
    flags.add_argument(
        "--budget",
        metavar="UNIT=AMOUNT",
        help=(
            "budget of every run: tokens=20M, flops=1e15 or minutes=10 (default: the tokens of "
            "the config's max_iters)"
        ),
    )
    flags.add_argument(
        "--baselines",
        metavar="FILES",
        help=(
            "comma-separated config files: repeat the sweep on each of these baselines, and "
            "report whether the changes have the same effect"
        ),
    )
    flags.add_argument(
        "--ladder",
        metavar="UNIT=A,B,C",
        help=(
            "repeat the sweep at increasing sizes or budgets, each tuned separately, and report "
            "whether the gains grow: params=1M,2M,4M,8M (by n_embd, with tokens in proportion to "
            "parameters), tokens=... or flops=..."
        ),
    )
    flags.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help=(
            "a key of the recipe or of a component to tune: every arm that has the key tries "
            "these values on separate seeds; all arms must get the same number of trials"
        ),
    )
    flags.add_argument(
        "--tune_seeds",
        type=int,
        default=1,
        metavar="N",
        help="number of seeds per trial (default 1)",
    )
    flags.add_argument("--name", help="folder under out_dir/sweeps (default: made from the plan)")
    flags.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=(
            "number of concurrent runs (default: as many as the GPUs allow, one on a CPU; on Ray "
            "and SLURM as many as fit)"
        ),
    )
    flags.add_argument(
        "--gpus_per_run",
        type=int,
        default=1,
        metavar="N",
        help=(
            "number of processes per run, started by torchrun on one machine; each has its own "
            "GPU if there are GPUs (default %(default)s)"
        ),
    )
    flags.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="where to run: this machine, a Ray cluster, or SLURM arrays (default: %(default)s)",
    )
    flags.add_argument(
        "--slurm_options",
        metavar="OPTIONS",
        help='with --engine=slurm: options for sbatch, "--partition=gpu --time=4:00:00"',
    )
    flags.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    flags.add_argument(
        "--json",
        action="store_true",
        help="with --dry_run: print each plan as a line of JSON, for other programs",
    )
    return flags


def read_request(options: argparse.Namespace, rest: Sequence[str]) -> Request:
    """Parse the request of a command line. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    arguments = split_arguments(rest)
    asked = configurator.read(rest)  # also registers the keys of plugins
    for path in _arm_files(options):
        with contextlib.suppress(ConfigError):  # reported with the arms
            read_config_file(path, {})
    problems += asked.problems
    unknown = [key for key in arguments.flags if key not in KEYS]
    problems += [configurator.unknown_key(key, f"--{key}") for key in unknown]
    problems = [_meant_as_option(problem, vars(options)) for problem in problems]
    if arguments.print_config:
        problems.append(Problem((), "--print_config is an option of train.py; see --dry_run."))
    for name in ("workers", "gpus_per_run"):
        count = getattr(options, name)
        if count is not None and not 1 <= count <= MOST_WORKERS:
            message = f"--{name}={told(count)} must be from 1 to {MOST_WORKERS:,}."
            problems.append(Problem((), message))
    with collect(problems):
        slurm_lines(options)
    with collect(problems):
        request = make_request(options, arguments)
    if problems:
        raise ConfigError(problems)
    return request


def make_request(options: argparse.Namespace, arguments: Arguments) -> Request:
    """Create the request from options and arguments. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    vary, tune, budget = {}, {}, None
    with collect(problems):
        vary = read_lists("--vary", options.vary)
    with collect(problems):
        tune = read_lists("--tune", options.tune)
    try:
        budget = parse_budget(options.budget) if options.budget else None
    except UserError as error:
        problems.append(Problem((), f"--budget: {error}"))
    if problems:  # later checks need these values
        raise ConfigError(problems)
    return Request(
        files=arguments.files,
        flags=arguments.texts(),
        vary=vary,
        arms=_arm_files(options),
        design=options.design,
        match=options.match,
        budget=budget,
        tune=tune,
        seeds=_seeds(options),
        until_sure=options.until_sure,
        tune_seeds=options.tune_seeds,
        margin=options.margin,
        name=options.name,
    )


def _seeds(options: argparse.Namespace) -> int:
    """The number of seeds per arm, or its maximum with --until_sure."""
    if options.until_sure and options.seeds is not None:
        raise UserError("--until_sure chooses the seeds itself; drop --seeds, or use --max_seeds.")
    if options.max_seeds is not None and not options.until_sure:
        raise UserError("--max_seeds needs --until_sure; add it, or use --seeds.")
    given = options.max_seeds if options.until_sure else options.seeds
    default = MAX_SEEDS if options.until_sure else SEEDS
    return default if given is None else given


def _arm_files(options: argparse.Namespace) -> tuple[str, ...]:
    """The config files that define one arm each."""
    return tuple(path for path in options.arms.split(",") if path)


def _meant_as_option(problem: Problem, known: Iterable[str]) -> Problem:
    """Replace the problem of an unknown key that looks like a misspelled option of the sweep."""
    key = problem.keys[0] if problem.keys else ""
    near = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.75)
    if key in KEYS or not near:
        return problem
    return Problem(problem.keys, f"there is no option --{key}; did you mean --{near[0]}?")


def slurm_lines(options: argparse.Namespace) -> tuple[str, ...]:
    """The sbatch options of a command line. Raises ConfigError if they are invalid."""
    if options.slurm_options is None:
        return ()
    if options.engine != "slurm":
        message = (
            f"--slurm_options needs --engine=slurm, not {options.engine}; use that engine, or "
            "drop --slurm_options."
        )
        raise ConfigError([Problem((), message)])
    return parse_slurm_options(options.slurm_options, options.gpus_per_run)


def make_engine(options: argparse.Namespace, plan: Plan) -> Engine:
    """Create the engine that runs the jobs."""
    device = plan.baseline.settings.training.device
    workers, processes = options.workers, options.gpus_per_run
    if options.engine == "ray":
        return RayEngine(plan.folder, workers, device, processes)
    if options.engine == "slurm":
        return SlurmEngine(plan.folder, workers, device, processes, slurm_lines(options))
    return LocalEngine(local_environments(options, plan), processes)


def local_environments(options: argparse.Namespace, plan: Plan) -> list[dict[str, str]]:
    """The environment variables of the runs of each local worker."""
    workers = runs_at_a_time(options, plan)
    return worker_environments(workers, local_device(plan), options.gpus_per_run)


def local_device(plan: Plan) -> str:
    return resolve_device(plan.baseline.settings.training.device).type


def runs_at_a_time(options: argparse.Namespace, plan: Plan) -> int:
    """Number of runs that share this machine, or a Ray cluster as far as known; SLURM gives each
    run its own devices.

    Raises:
        UserError: If this machine has fewer GPUs than requested per run.
    """
    if options.engine == "slurm":
        return 1
    processes = options.gpus_per_run
    device = local_device(plan) if options.engine == "local" else "cpu"
    if device not in ("cpu", "cuda") and processes > 1:
        raise UserError(
            f"--gpus_per_run={processes}, but this machine has 1 GPU; use --gpus_per_run=1, or "
            "--device=cpu."
        )
    room = len(gpu_groups(processes)) if device == "cuda" else 1
    return options.workers or room


def shared_gpus(options: argparse.Namespace, plan: Plan) -> int | None:
    """Number of GPUs that local workers share; None if each task has its own, or there are none."""
    if options.engine != "local" or local_device(plan) != "cuda":
        return None
    return len(visible_gpus())


# The sweep


def main(argv: list[str]) -> int:
    """Run the sweep of a command line; returns 0 if every run ended, else 1."""
    return sweep_run(argv)[1]


def sweep_run(argv: list[str]) -> tuple[Path, int]:
    """Like `main`, but also returns the folder of the sweep or of the series."""
    options, rest = parser().parse_known_args(argv)
    try:
        if options.json and not options.dry_run:
            raise UserError("--json has no effect without --dry_run; add --dry_run or drop --json.")
        if started_as_worker():
            raise UserError("sweep.py starts its own processes; start it without torchrun.")
        request = read_request(options, rest)
        if options.ladder and options.baselines:
            raise UserError("--ladder and --baselines cannot be combined; drop one.")
        if options.ladder:
            plans = make_rungs(request, parse_ladder(options.ladder), Path.cwd())
            return run_series(LADDER, plans, options, argv)
        if options.baselines:
            plans = baseline_plans(request, options.baselines.split(","))
            return run_series(BASELINES, plans, options, argv)
        plan = make_plan(request, Path.cwd())
        return plan.folder, carry_out(plan, options, argv)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(str(error)) from error


def run_series(
    kind: str, plans: Sequence[tuple[str, Plan]], options: argparse.Namespace, argv: Sequence[str]
) -> tuple[Path, int]:
    """Run related sweeps and compare them; returns their folder, and 0 if every run ended, else
    1."""
    first = plans[0][1].folder
    folder = first.with_name(options.name or f"{first.name}-{kind}")
    if not options.dry_run:
        members = tuple(Member(label, plan.folder) for label, plan in plans)
        write_series(folder, Series(kind, members, shlex.join(["python", "sweep.py", *argv])))
    for number, (label, plan) in enumerate(plans, start=1):
        if not options.json:
            print(f"\nSweep {number} of {len(plans)}: {label}")
        if carry_out(plan, options, argv):
            return folder, 1
    if not options.dry_run:
        print(f"\nAll {len(plans)} sweeps together, {format_path(folder)}\n")
        if compare_architectures.main([format_path(folder)]) == 0:
            view = view_series(folder, None, None, lambda problem: None)  # reported just above
            write_report(view.write_page, Path(format_path(folder)), Console())
    return folder, 0


def baseline_plans(request: Request, files: Sequence[str]) -> list[tuple[str, Plan]]:
    """The name and plan of a sweep on each of several baselines, given as config files."""
    if len(files) < 2 or len({Path(file).stem for file in files}) < len(files):
        raise UserError("--baselines needs at least two config files with different names.")
    plans = []
    for file in files:
        label = Path(file).stem
        name = request.name and f"{request.name}-{label}"
        files = (file, *request.files)
        own = dataclasses.replace(request, files=files, name=name, one_of_several=True)
        try:
            plans.append((label, make_plan(own, Path.cwd())))
        except ConfigError as error:
            named = (Problem(own.keys, f"on {label}: {own.message}") for own in error.problems)
            raise ConfigError(list(named)) from error
        except UserError as error:
            raise UserError(f"on {label}: {error}") from error
    return plans


def carry_out(plan: Plan, options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Show a plan and run it, unless --dry_run; returns 0 if every run ended, else 1."""
    plan = with_seeds_of_before(plan)
    processes = options.gpus_per_run
    refuse_uneven_shares(plan, processes)
    if options.json:
        print(json.dumps(plan_as_data(plan, options, argv)))
        return 0
    workers, gpus = runs_at_a_time(options, plan), shared_gpus(options, plan)
    if options.engine == "local":
        refuse_this_machine(plan, processes)
    timed = options.dry_run and options.engine == "local"
    seconds = seconds_by_arm(plan, options) if timed else None
    print(overview(plan, seconds, workers, gpus, processes))
    if not (plan.folder / SWEEP_FILE).exists():
        for note in begun_with_other_code(plan.folder, plan.identity):
            print("\n".join(wrapped(note)))
    if options.dry_run:
        return 0
    with locked(plan.folder, "name"):
        engine = make_engine(options, plan)  # first, because Ray also installs signal handlers
        with StopRequest("letting running runs save") as stop:
            return run_sweep(plan, engine, stop, argv)


def plan_as_data(plan: Plan, options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """A plan for other programs: number of runs, FLOPs, minutes if those limit the runs (with
    --until_sure at most), how runs share the machine, the baseline's config, and the arguments
    that are not the sweep's own."""
    runs = len(plan.seeds) + plan.trials_each * len(plan.tuning_seeds)
    timed = plan.is_timed
    return {
        "name": plan.name,
        "folder": str(plan.folder),
        "runs": runs * len(plan.arms),
        "flops": None if timed else runs * sum(arm.flops for arm in plan.arms),
        "minutes": runs * len(plan.arms) * plan.request.budget.amount if timed else None,
        "workers": options.workers,
        "gpus_per_run": options.gpus_per_run,
        "baseline": plan.baseline.settings.to_dict(),
        "rest": parser().parse_known_args(argv)[1],
    }


def refuse_uneven_shares(plan: Plan, processes: int) -> None:
    """Raise ConfigError if the batches of an arm do not divide among the processes of a run."""
    problems: list[Problem] = []
    for arm in plan.arms:
        training = arm.settings.training
        workers = workers_to_start(processes, training.tensor_parallel)
        uneven = share_problems(training, workers.data_size)
        with collect_problems(arm.name, problems):
            if uneven:
                raise ConfigError(uneven)
    if problems:
        raise ConfigError(problems)


def refuse_this_machine(plan: Plan, processes: int = 1) -> None:
    """Raise ConfigError, with the problems of every arm, if runs with this many processes cannot
    train on this machine."""
    problems: list[Problem] = []
    for arm in plan.arms:
        device = resolve_device(arm.settings.training.device)
        dtype = resolve_dtype(arm.settings.training.dtype, device)
        with collect_problems(arm.name, problems):
            workers = workers_to_start(processes, arm.settings.training.tensor_parallel)
            refuse_machine(arm.settings, device, dtype, workers)
    if problems:
        raise ConfigError(problems)


def with_seeds_of_before(plan: Plan) -> Plan:
    """The plan with at least as many seeds as its folder already has.

    Raises:
        UserError: If the folder contains another sweep.
    """
    if not (plan.folder / SWEEP_FILE).exists():
        return plan
    before = read_sweep(plan.folder)
    refuse_another(before, plan.identity)
    refuse_other_choices(before, plan)
    seeds = max(before.seeds, plan.request.seeds)
    looks = before.looks
    if seeds > before.seeds and has_shown(before):
        looks = tuple(sorted({*looks, before.seeds}))
    request = dataclasses.replace(plan.request, seeds=seeds)
    return dataclasses.replace(plan, request=request, looks=looks)


def has_shown(sweep: Sweep) -> bool:
    """Whether a comparison of the sweep in its current state shows a verdict for any arm, so that
    further seeds would be added after a look."""
    whole = [
        len(runs) > 1 and all(status_of(run) in ENDED for run in runs)
        for runs in sweep.arms.values()
    ]
    return sum(whole) > 1 and not sweep.schedule  # any arm can be named as the baseline


def refuse_other_choices(before: Sweep, plan: Plan) -> None:
    """Raise UserError if final runs were trained with values that the trials no longer choose."""
    tuned = plan.tuned()
    for name, chosen in before.tuned.items():
        begun = [run for run in before.arms[name] if (run / RUN_FILE).exists()]
        if begun and chosen is not None and (name not in tuned or tuned[name].choice != chosen):
            raise UserError(
                f"{name} was tuned to {assignments(chosen)} when {begun[0]} was trained, but its "
                "trials have changed since; restore them, or remove its runs."
            )


def seconds_by_arm(plan: Plan, options: argparse.Namespace) -> dict[str, float]:
    """Estimated seconds of a run of each arm with the requested workers."""
    processes = options.gpus_per_run
    start = seconds_to_start(processes)
    if plan.is_timed:
        return {arm.name: start + 60 * plan.request.budget.amount for arm in plan.arms}
    read = len(plan.dataset.val)
    with threads_of(local_environments(options, plan)[0]):
        return {
            arm.name: start
            + seconds_of_run(arm.settings, arm.settings.training.max_iters, read, processes)
            for arm in plan.arms
        }


@contextlib.contextmanager
def threads_of(environment: Mapping[str, str]) -> Iterator[None]:
    """A context with the number of threads that a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(environment.get(THREADS, before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_sweep(plan: Plan, engine: Engine, stop: StopRequest, argv: Sequence[str]) -> int:
    """Tune if requested, run the remaining jobs, and compare."""
    command = shlex.join(["python", "sweep.py", *argv])
    console = Console()
    write_manifest(plan, command)
    failed = run_jobs(plan.tuning_jobs(), engine, stop, console)
    tuned = plan.tuned()
    if plan.trials_each and not stop.requested:
        report_tuning(plan, tuned, console)
        write_manifest(plan, command)
    left = False
    for stage in stages(plan, tuned, command, console):
        jobs = stage.final_jobs(tuned)
        failed += run_jobs(jobs, engine, stop, console)
        left = any(job.status not in ENDED for job in jobs)
        if stop.requested or left:
            break
    for outcome in failed:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(f"\nFAILED: {outcome.job.title}\n{outcome.message}", file=sys.stderr)
    if stop.requested:
        console.say(f"{stop.requested} received: sweep stopped; the same command continues it.")
        return 1
    console.say("")
    folder = Path(format_path(plan.folder))
    if compare_architectures.main([str(folder)]) == 0:
        findings = select([str(folder)], None, folder).findings()
        write_report(partial(write_page, findings), folder, console)
    return 1 if failed or left or len(tuned) < len(plan.arms) else 0


def write_report(write: Callable[[Path], None], folder: Path, console: Console) -> None:
    """Write the page of a sweep or of a series into its folder, and say where it is."""
    path = folder / PAGE_FILE
    try:
        write(path)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}.", file=sys.stderr)
    else:
        console.say(f"Report: {path}")


def stages(
    plan: Plan, tuned: Mapping[str, Tuned], command: str, console: Console
) -> Iterator[Plan]:
    """Yield the plan up to the next look: once, or with --until_sure until every verdict is
    conclusive or unlikely to become so.

    After each stage, whose runs must have ended, the look is recorded in the manifest.
    """
    reached = {arm.name: look.n for arm in plan.arms for look in plan.schedule[:1]}
    while True:
        plan = dataclasses.replace(plan, reached=reached or None)
        write_manifest(plan, command)
        yield plan
        plan = dataclasses.replace(plan, looks=looks_with(plan))
        write_manifest(plan, command)
        open_arms = next_looks(plan) if reached else {}
        if not open_arms:
            return
        console.say(f"inconclusive after {max(reached.values())} seeds: {', '.join(open_arms)}")
        reached = {**reached, **open_arms, plan.baseline.name: max(open_arms.values())}


def next_looks(plan: Plan) -> dict[str, int]:
    """By name, the number of seeds at the next look for each arm that has not stopped."""
    findings = select([str(plan.folder)], None, plan.folder).findings()
    arms = {row.group.name: row.group.arm for row in findings.rows}
    return {arms[name]: seeds for name, seeds in findings.next_looks.items()}


def looks_with(plan: Plan) -> tuple[int, ...]:
    """The looks, including one at the current number of seeds."""
    present = max(plan.reached.values()) if plan.reached else plan.request.seeds
    return tuple(sorted({*plan.looks, *([present] if present > 1 else [])}))


def report_tuning(plan: Plan, tuned: Mapping[str, Tuned], console: Console) -> None:
    """Print the tuning result of each arm, and what should be tuned again."""
    known = allowances(tuned)
    for arm in plan.arms:
        if arm.name not in tuned:
            console.say(f"tuned {arm.name}: waiting for its trials")
            continue
        own, allowed = tuned[arm.name], known[arm.name]
        notes = [f"at its best value, the loss may be up to {allowed:.4f} nats lower"]
        if allowed > plan.request.margin:
            notes.append("tune finer: this exceeds the margin")
        if own.edges:
            keys = ", ".join(own.edges)
            notes.append(f"at the edge of the tried values: widen --tune {keys}")
        console.say(f"tuned {arm.name}: {assignments(own.choice)} ({'; '.join(notes)})")


if __name__ == "__main__":
    run_cli(main)
