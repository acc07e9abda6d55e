"""Run the jobs of a sweep as SLURM array tasks: write the script, submit it, and wait for it."""

from __future__ import annotations

import getpass
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from errors import ConfigError, Problem, UserError, printable
from experiment.arms import slug
from experiment.engines import THREADS, Stops
from experiment.jobs import (
    ENDED,
    FAILED,
    INTERRUPTED,
    PATIENCE_SECONDS,
    POLL_SECONDS,
    Job,
    Outcome,
    last_lines,
    launch_environment,
    launched,
    refusal_of,
)

QUEUE_SECONDS = 10.0
"""Interval between calls of squeue, which loads a server shared by all users of the cluster."""

SETTLING_SECONDS = 60.0
"""Time for a shared file system to show the files of a task that left the queue."""

SILENCE_SECONDS = 600.0
"""How long squeue may fail, for example while its server restarts."""

COMMAND_SECONDS = 120.0
"""Timeout of SLURM commands."""

MOST_TASKS = 1_000
"""Maximum number of tasks per array, SLURM's default limit (MaxArraySize)."""

SAVING_SECONDS = 120
"""Time before its time limit at which a run is asked to save and stop."""

COMMANDS = ("sbatch", "squeue", "scancel")

# sbatch options that the sweep sets itself: long name -> short name.
_SET_HERE = {
    "--array": "-a",
    "--chdir": "-D",
    "--error": "-e",
    "--gpus": "-G",
    "--gpus-per-node": "",
    "--gpus-per-task": "",
    "--nodes": "-N",
    "--ntasks": "-n",
    "--output": "-o",
}


# Options of sbatch


def parse_slurm_options(text: str, processes: int) -> tuple[str, ...]:
    """Split `"--partition=gpu -t 4:00:00"` into `("--partition=gpu", "-t 4:00:00")`.

    Args:
        text: The options, as written on the command line.
        processes: Number of processes per run, each with its own GPU.

    Raises:
        ConfigError: If options cannot be parsed, are set by the sweep, or request another number of
            GPUs; it lists them all.
    """
    example = '--slurm_options="--partition=gpu --time=4:00:00"'
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _refused(f"cannot parse --slurm_options ({error}); write {example}") from error
    if not words or not words[0].startswith("-") or not text.isprintable():
        raise _refused(f"cannot parse --slurm_options={text!r}; write {example}")
    options: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            options.append([])
        options[-1].append(word)
    problems = [
        Problem((), f"--slurm_options: {problem}")
        for option in options
        for problem in _option_problems(" ".join(option), processes)
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(map(shlex.join, options))


def _refused(message: str) -> ConfigError:
    return ConfigError([Problem((), message)])


def _option_problems(option: str, processes: int) -> Iterator[str]:
    name, _, value = option.replace(" ", "=", 1).partition("=")
    short = name[:2] if not name.startswith("--") else None
    for long, letter in _SET_HERE.items():
        if name == long or (short and short == letter):
            gpus = f", or use --gres=gpu:TYPE:{processes} to choose a GPU type" * ("gpu" in long)
            yield f"{name} is set by the sweep itself; drop it{gpus}."
    if name != "--gres":
        return
    for resource in value.split(","):
        kind, *rest = resource.split(":")
        count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
        if kind == "gpu" and count != processes:
            yield (
                f"{option} requests {count} GPU{'s' * (count > 1)}, but "
                f"--gpus_per_run={processes}; use the same number for both."
            )


# The script


def array_script(
    jobs: Sequence[Job], workers: int | None, on_gpus: bool, processes: int, options: Sequence[str]
) -> str:
    """The script of an array with a task for each job; it runs in the folder of the sweep.

    Args:
        jobs: The jobs in order of their task numbers, from 0.
        workers: Number of concurrent tasks. None: as many as fit.
        on_gpus: Whether each process has a GPU.
        processes: Number of processes per run.
        options: Options of sbatch. They come last, so that they take precedence.
    """
    name = slug(jobs[0].folder.parents[1].name)
    asked = [
        f"--job-name={name}",
        f"--array=0-{len(jobs) - 1}" + (f"%{workers}" if workers else ""),
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={processes}",
        *([f"--gres=gpu:{processes}"] if on_gpus else []),
        f"--signal=B:TERM@{SAVING_SECONDS}",
        "--open-mode=append",
        "--output=slurm/%A_%a.txt",
        *options,
    ]
    variables = "\n".join(f"export {key}={value}" for key, value in launch_environment().items())
    tasks = "\n".join(_task(number, job, processes) for number, job in enumerate(jobs))
    header = "\n".join(f"#SBATCH {option}" for option in asked)
    return f"""\
#!/bin/bash
{header}

# Written by sweep.py. Each task trains or continues one run.

{variables}
{"" if on_gpus else _shared_cores(processes)}
unchanged() {{  # digests and files, as sha256sum prints them
    sha256sum --check --quiet <<< "$1" || {{
        echo "These files changed while the task was waiting; the run was not started."
        exit 1
    }}
}}

case $SLURM_ARRAY_TASK_ID in
{tasks}
esac

# SLURM signals only the process of the script, so the run replaces it.
exec "${{command[@]}}"
"""


def _shared_cores(processes: int) -> str:
    """Script lines that divide the task's cores among processes, unless OMP_NUM_THREADS is set."""
    return (
        f"cores=$((${{SLURM_CPUS_PER_TASK:-{processes}}} / {processes}))\n"
        f"export {THREADS}=${{{THREADS}:-$((cores > 1 ? cores : 1))}}\n"
    )


def _task(number: int, job: Job, processes: int) -> str:
    """The `case` branch of a task."""
    listed = "\n".join(f"{digest}  {path}" for path, digest in job.files.items())
    check = f"    unchanged {shlex.quote(listed)}\n" if listed else ""
    return (
        f"{number})\n"
        f"    exec < /dev/null >> {shlex.quote(str(job.output))} 2>&1\n"
        f"    cd {shlex.quote(str(job.directory))} || exit\n"
        f"{check}"
        f"    command=({shlex.join(launched(job.command, processes))})\n"
        "    ;;"
    )


# The engine


class SlurmEngine:
    """Runs jobs as SLURM array tasks on machines that share this one's files and Python
    environment.

    Args:
        folder: The folder of the sweep; its subfolder `slurm` contains scripts and SLURM output.
        workers: Number of concurrent tasks. None: as many as fit on the cluster.
        device: The `device` key of the runs; they use GPUs unless it is cpu.
        processes: Number of processes per run, on one machine.
        options: Options of sbatch; see `parse_slurm_options`.

    Raises:
        UserError: If SLURM is not installed, or an array of this sweep is already in the queue.
    """

    def __init__(
        self,
        folder: Path,
        workers: int | None,
        device: str,
        processes: int = 1,
        options: Sequence[str] = (),
    ):
        missing = [command for command in COMMANDS if shutil.which(command) is None]
        if missing:
            raise UserError(
                f"--engine=slurm needs {', '.join(COMMANDS)}, but PATH has no "
                f"{', '.join(missing)}; start the sweep on a login node of the cluster."
            )
        self.workers = workers or MOST_TASKS
        self._folder = folder
        self._limit = workers
        self._on_gpus = device != "cpu"
        self._processes = processes
        self._options = options
        self._scripts = folder / "slurm"
        self._scripts.mkdir(parents=True, exist_ok=True)
        self._refuse_earlier_arrays()

    def run(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        todo = []
        for job in jobs:
            refusal = refusal_of(job)
            if refusal:
                yield Outcome(job, FAILED, 0.0, refusal)
            else:
                todo.append(job)
        for first in range(0, len(todo), MOST_TASKS):
            if stops():
                return
            yield from self._run_array(todo[first : first + MOST_TASKS], stops)

    def _run_array(self, jobs: Sequence[Job], stops: Stops) -> Iterator[Outcome | None]:
        jobs[0].output.parent.mkdir(parents=True, exist_ok=True)
        tasks = {number: _Task(job) for number, job in enumerate(jobs)}
        array = self._submit(jobs)
        stop_at = None  # when to kill the remaining tasks
        queue = _Queue()
        try:
            while tasks:
                if stops() and stop_at is None:
                    stop_at = time.monotonic() + PATIENCE_SECONDS
                    queue.look()
                    _note(tasks, queue.states(array))
                    _stop(array)
                if stop_at is not None and time.monotonic() > stop_at:
                    _cancel(array)
                    stop_at += PATIENCE_SECONDS
                if queue.look_if_due():
                    _note(tasks, queue.states(array))
                for number in [n for n, task in tasks.items() if task.left_at is not None]:
                    outcome = self._outcome(array, number, tasks[number], stop_at is not None)
                    if outcome or stop_at is not None:
                        del tasks[number]
                        yield outcome
                yield None
                time.sleep(POLL_SECONDS)
        finally:
            if tasks:  # an error or a second Ctrl-C; no run may continue without its sweep
                _cancel(array)

    def _outcome(self, array: str, number: int, task: _Task, stopped: bool) -> Outcome | None:
        """The outcome of a task that left the queue; None while unknown, or if it was stopped
        before it started."""
        job, seconds = task.job, task.left_at - (task.began or task.submitted)
        status = job.status
        if status in ENDED:
            return Outcome(job, status, seconds)
        if stopped:
            return Outcome(job, INTERRUPTED, seconds) if task.began else None
        if time.monotonic() - task.left_at < SETTLING_SECONDS:
            return None
        return Outcome(job, FAILED, seconds, self._failure(array, number, task))

    def _failure(self, array: str, number: int, task: _Task) -> str:
        """The last output of a task that failed or disappeared, and that of SLURM."""
        name, output = f"{array}_{number}", task.job.output
        said = last_lines(output, task.said_before) if output.exists() else ""
        slurm = self._scripts / f"{name}.txt"
        cause = last_lines(slurm, 0) if slurm.exists() else ""
        lines = [
            f"task {name} left the queue before its run ended"
            + (f"; {output} ends with:\n{said}" if said else " and printed nothing"),
            *([f"{slurm} ends with:\n{cause}"] if cause else []),
        ]
        return "\n".join(lines)

    def _submit(self, jobs: Sequence[Job]) -> str:
        """Submit an array; returns its ID, after which the script is named."""
        script = self._scripts / "array.sh"
        text = array_script(jobs, self._limit, self._on_gpus, self._processes, self._options)
        script.write_text(text, encoding="utf-8")
        done = _ran("sbatch", "--parsable", str(script), cwd=self._folder)
        if done.returncode:
            gpus = ", or use --device=cpu on a cluster without GPUs" * self._on_gpus
            raise UserError(
                f"sbatch refused {script}: {_one_line(done.stderr)}; change --slurm_options{gpus}."
            )
        array = done.stdout.strip().partition(";")[0]  # may be followed by the cluster name
        script.rename(self._scripts / f"{array}.sh")
        return array

    def _refuse_earlier_arrays(self) -> None:
        queue = _Queue()
        queue.look()
        for script in self._scripts.glob("*.sh"):
            if queue.states(script.stem):
                raise UserError(
                    f"array {script.stem} of this sweep is already in the queue, possibly left by "
                    f"a killed sweep; wait until it ends, or run scancel {script.stem}, and repeat "
                    "the command."
                )


class _Task:
    """The known state of a task: when it was submitted, first seen running, and found to have left
    the queue, by time.monotonic(); and the size of its run's earlier output in bytes."""

    def __init__(self, job: Job):
        self.job = job
        self.submitted = time.monotonic()
        self.said_before = job.output.stat().st_size if job.output.exists() else 0
        self.began: float | None = None
        self.left_at: float | None = None


def _note(tasks: Mapping[int, _Task], states: Mapping[int, str]) -> None:
    """Record which tasks are running, and which have left the queue."""
    now = time.monotonic()
    for number, task in tasks.items():
        if states.get(number, "PENDING") != "PENDING" and task.began is None:
            task.began = now
        if number in states:
            task.left_at = None  # requeued, for example after a node failure
        elif task.left_at is None:
            task.left_at = now


class _Queue:
    """The state of this user's arrays according to squeue."""

    def __init__(self) -> None:
        self._lines: list[list[str]] = []
        self._looked = -QUEUE_SECONDS
        self._heard = time.monotonic()

    def look_if_due(self) -> bool:
        """Call squeue if the last call is long enough ago; returns whether there is an update."""
        return time.monotonic() - self._looked >= QUEUE_SECONDS and self.look()

    def look(self) -> bool:
        """Call squeue; returns False if it failed, in which case the last state is kept.

        Raises:
            UserError: If squeue has been failing for SILENCE_SECONDS.
        """
        self._looked = time.monotonic()
        user = f"--user={getpass.getuser()}"
        done = _ran("squeue", "--noheader", "--array", user, "--format=%F %K %T")
        if done.returncode == 0:
            self._lines = [line.split() for line in done.stdout.splitlines()]
            self._heard = time.monotonic()
            return True
        if time.monotonic() - self._heard > SILENCE_SECONDS:
            raise UserError(
                f"squeue has failed for {SILENCE_SECONDS / 60:.0f} minutes: "
                f"{_one_line(done.stderr)}; repeat the command once it works."
            )
        return False

    def states(self, array: str) -> dict[int, str]:
        """The state of each waiting or running task of an array."""
        lines = [line for line in self._lines if len(line) == 3 and line[0] == array]
        return {int(task): state for _, task, state in lines if task.isdigit()}


def _stop(array: str) -> None:
    """Remove waiting tasks from the queue, and ask running tasks to save and stop."""
    _ran("scancel", "--state=PENDING", array)
    _ran("scancel", "--signal=TERM", "--batch", array)


def _cancel(array: str) -> None:
    """End all tasks of an array immediately."""
    _ran("scancel", array)


def _ran(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command; Ctrl-C does not reach it."""
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMMAND_SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        message = f"no response within {COMMAND_SECONDS:.0f} seconds"
        return subprocess.CompletedProcess(command, 1, "", message)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
