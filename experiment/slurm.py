"""The jobs of a sweep as tasks of SLURM arrays: the script, its submission, and the wait for it."""

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
"""Between two calls of squeue, which asks a server that all users of the cluster share."""

SETTLING_SECONDS = 60.0
"""What a shared file system may take to show what a task that left the queue has written."""

SILENCE_SECONDS = 600.0
"""For how long squeue may fail, as it does while its server restarts."""

COMMAND_SECONDS = 120.0
"""For how long a command of SLURM may take."""

MOST_TASKS = 1_000
"""Of an array, which SLURM allows unless a cluster lowers MaxArraySize."""

SAVING_SECONDS = 120
"""How long before its time limit a run is asked to save and stop."""

COMMANDS = ("sbatch", "squeue", "scancel")

# Options that the sweep sets itself: long name -> short one.
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
    """`"--partition=gpu -t 4:00:00"` as options of sbatch, `("--partition=gpu", "-t 4:00:00")`.

    Args:
        text: As the command line spells it.
        processes: Of a run, which has a GPU for each.

    Raises:
        ConfigError: With every option that cannot be read, is set by the sweep, or asks for another
            number of GPUs.
    """
    example = '--slurm_options="--partition=gpu --time=4:00:00"'
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _refused(f"cannot read --slurm_options ({error}); write {example}") from error
    if not words or not words[0].startswith("-") or not text.isprintable():
        raise _refused(f"cannot read --slurm_options={text!r}; write {example}")
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
            gpus = f", --gres=gpu:TYPE:{processes} to name a type of GPU" * ("gpu" in long)
            yield f"{name} is set by the sweep itself; drop it{gpus}."
    if name != "--gres":
        return
    for resource in value.split(","):
        kind, *rest = resource.split(":")
        count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
        if kind == "gpu" and count != processes:
            yield (
                f"{option} asks for {count} GPU{'s' * (count > 1)}, but --gpus_per_run={processes};"
                " give both the same number."
            )


# The script


def array_script(
    jobs: Sequence[Job], workers: int | None, on_gpus: bool, processes: int, options: Sequence[str]
) -> str:
    """The script of an array with a task for each job; it runs in the folder of the sweep.

    Args:
        jobs: In the order of their task numbers, from 0.
        workers: Tasks at a time; None: as many as have room.
        on_gpus: Whether each process has a GPU.
        processes: That train a run together.
        options: Of sbatch. They come last, so that they win.
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

# Written by sweep.py. Each task trains one run, or goes on with it.

{variables}
{"" if on_gpus else _shared_cores(processes)}
unchanged() {{  # digests and files, as sha256sum prints them
    sha256sum --check --quiet <<< "$1" || {{
        echo "These files changed while the task waited; the run was not begun."
        exit 1
    }}
}}

case $SLURM_ARRAY_TASK_ID in
{tasks}
esac

# SLURM signals the process of the script alone, so the run takes its place.
exec "${{command[@]}}"
"""


def _shared_cores(processes: int) -> str:
    """Lines that give each process its part of the task's cores, unless OMP_NUM_THREADS is set."""
    return (
        f"cores=$((${{SLURM_CPUS_PER_TASK:-{processes}}} / {processes}))\n"
        f"export {THREADS}=${{{THREADS}:-$((cores > 1 ? cores : 1))}}\n"
    )


def _task(number: int, job: Job, processes: int) -> str:
    """The branch of one task."""
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
    """Tasks of SLURM arrays, on machines that share this one's files and Python environment.

    Args:
        folder: The sweep's; its folder `slurm` keeps the scripts and what SLURM prints.
        workers: Tasks at a time; None: as many as the cluster has room for.
        device: The key of the runs: they have GPUs unless it is cpu.
        processes: That train a run together, on one machine.
        options: Of sbatch, see `parse_slurm_options`.

    Raises:
        UserError: SLURM is not installed, or an array of this sweep is in the queue already.
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
        stop_at = None  # when what still runs is killed
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
            if tasks:  # an error or a second Ctrl-C; no run may go on without its sweep
                _cancel(array)

    def _outcome(self, array: str, number: int, task: _Task, stopped: bool) -> Outcome | None:
        """How the run of a task that left the queue went; None while that is not known, and for one
        that was stopped before it began."""
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
        """What a task that failed or vanished said last, and what SLURM said of it."""
        name, output = f"{array}_{number}", task.job.output
        said = last_lines(output, task.said_before) if output.exists() else ""
        slurm = self._scripts / f"{name}.txt"
        cause = last_lines(slurm, 0) if slurm.exists() else ""
        told = [
            f"task {name} left the queue before its run had ended"
            + (f"; {output} ends with:\n{said}" if said else " and printed nothing"),
            *([f"{slurm} ends with:\n{cause}"] if cause else []),
        ]
        return "\n".join(told)

    def _submit(self, jobs: Sequence[Job]) -> str:
        """Submit an array and return its ID, which names its script."""
        script = self._scripts / "array.sh"
        text = array_script(jobs, self._limit, self._on_gpus, self._processes, self._options)
        script.write_text(text, encoding="utf-8")
        done = _ran("sbatch", "--parsable", str(script), cwd=self._folder)
        if done.returncode:
            gpus = ", or use --device=cpu on a cluster without GPUs" * self._on_gpus
            raise UserError(
                f"sbatch refused {script}: {_one_line(done.stderr)}; change --slurm_options{gpus}."
            )
        array = done.stdout.strip().partition(";")[0]  # the cluster may follow
        script.rename(self._scripts / f"{array}.sh")
        return array

    def _refuse_earlier_arrays(self) -> None:
        queue = _Queue()
        queue.look()
        for script in self._scripts.glob("*.sh"):
            if queue.states(script.stem):
                raise UserError(
                    f"array {script.stem} of this sweep is in the queue, which a sweep that was "
                    f"killed may have left; wait until it ends, or run scancel {script.stem}, and "
                    "repeat the command."
                )


class _Task:
    """A task as far as it is known: when it was submitted, first seen to run, and seen to have left
    the queue, by time.monotonic(); the bytes that its run had printed before."""

    def __init__(self, job: Job):
        self.job = job
        self.submitted = time.monotonic()
        self.said_before = job.output.stat().st_size if job.output.exists() else 0
        self.began: float | None = None
        self.left_at: float | None = None


def _note(tasks: Mapping[int, _Task], states: Mapping[int, str]) -> None:
    """Note which tasks run, and which have left the queue."""
    now = time.monotonic()
    for number, task in tasks.items():
        if states.get(number, "PENDING") != "PENDING" and task.began is None:
            task.began = now
        if number in states:
            task.left_at = None  # put back into the queue, as after a failure of its node
        elif task.left_at is None:
            task.left_at = now


class _Queue:
    """What squeue tells of this user's arrays."""

    def __init__(self) -> None:
        self._lines: list[list[str]] = []
        self._looked = -QUEUE_SECONDS
        self._heard = time.monotonic()

    def look_if_due(self) -> bool:
        """Look, if the last time is long enough ago; whether there is news."""
        return time.monotonic() - self._looked >= QUEUE_SECONDS and self.look()

    def look(self) -> bool:
        """Look; False if squeue failed, so that what it told before stands.

        Raises:
            UserError: squeue has been failing for long.
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
        """Of each task of an array that waits or runs, its state."""
        lines = [line for line in self._lines if len(line) == 3 and line[0] == array]
        return {int(task): state for _, task, state in lines if task.isdigit()}


def _stop(array: str) -> None:
    """Take the tasks that wait from the queue, and ask those that run to save and stop."""
    _ran("scancel", "--state=PENDING", array)
    _ran("scancel", "--signal=TERM", "--batch", array)


def _cancel(array: str) -> None:
    """End all tasks of an array at once."""
    _ran("scancel", array)


def _ran(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command of SLURM, run to its end; Ctrl-C does not reach it."""
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
        told = f"no answer within {COMMAND_SECONDS:.0f} seconds"
        return subprocess.CompletedProcess(command, 1, "", told)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
