"""docs/recipes.md: its commands are valid, and the page shows what they printed."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

import configurator
import sweep
from errors import UserError
from scripts.questions import PAGE, QUESTIONS, Answer, Question, Step, ask, page, shortened

OUTPUT = "Sweep x\n\n  in out\nVerdicts\n  better\n\nCaveats\n  none\n"
COMMANDS = [
    (question, shlex.split(step.command)) for question in QUESTIONS for step in question.steps
]
SWEEPS = [(question, words[2:]) for question, words in COMMANDS if words[1] == "sweep.py"]


def test_there_are_ten_questions_with_names_of_their_own():
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS) >= 10


@pytest.mark.parametrize(("question", "argv"), SWEEPS, ids=[one.name for one, _ in SWEEPS])
def test_the_sweeps_can_be_asked_for(question, argv, tmp_path, monkeypatch):
    for name, text in question.files.items():
        (tmp_path / name).write_text(text)
        argv = [word.replace(name, str(tmp_path / name)) for word in argv]
    options, rest = sweep.parser().parse_known_args(argv)
    assert sweep.read_request(options, rest).name == question.name


def test_the_trainings_can_be_asked_for():
    trainings = [words[2:] for _, words in COMMANDS if words[1] == "train.py"]
    elsewhere = {"--dry_run", "--init_from=model"}
    own = [argv for argv in trainings if not elsewhere & set(argv)]
    for argv in own:
        assert not configurator.read(argv).problems
    assert own


def test_the_page_that_is_there_answers_these_questions():
    text = PAGE.read_text(encoding="utf-8")
    places = [text.index(f"\n## {question.title}\n") for question in QUESTIONS]
    assert places == sorted(places)
    for question in QUESTIONS:
        for step in question.steps:
            assert f"```sh\n{step.command}\n```" in text
        for code in question.files.values():
            assert code in text
    assert " ".join(text.split()).count(" Run time: ") == len(QUESTIONS)


def test_what_is_left_out_is_marked():
    assert shortened(OUTPUT, ()) == OUTPUT.rstrip()
    assert shortened(OUTPUT, (("Verdicts", "Caveats"),)) == "...\nVerdicts\n  better\n..."
    both = (("Sweep", "  in"), ("Caveats", ""))
    assert shortened(OUTPUT, both) == "Sweep x\n...\nCaveats\n  none"
    assert shortened(OUTPUT, (("Sweep", "Verdicts"),)) == "Sweep x\n\n  in out\n..."
    with pytest.raises(UserError, match="no line of the output begins with 'Nothing'"):
        shortened(OUTPUT, (("Nothing", ""),))


def test_a_question_is_asked_and_its_answer_kept(tmp_path, capfd):
    question = Question(
        name="q",
        title="What is in the file?",
        method="Look:",
        steps=(Step("python show.py"), Step("python -c 'print(1)'")),
        reading="That.",
        files={"show.py": "import sys\nprint('out')\nprint('err', file=sys.stderr, flush=True)\n"},
    )
    answer = ask(question, tmp_path)
    assert sorted(answer.outputs[0].split()) == ["err", "out"]
    assert answer.outputs[1] == "1\n"
    answer.write(tmp_path / "q.json")
    assert Answer.from_file(tmp_path / "q.json") == answer
    failing = Step("python -c 'raise SystemExit(3)'")
    with pytest.raises(UserError, match="exited with status 3"):
        ask(Question("f", "?", "", (failing,), ""), tmp_path)
    expected = dataclasses.replace(failing, status=3)
    assert ask(Question("f", "?", "", (expected,), ""), tmp_path).outputs == [""]


def markers(step: Step) -> str:
    """An output with the lines that the page looks for."""
    return "\n".join(text for span in step.show for text in span if text)


@pytest.mark.parametrize(("load", "said"), [(0.01, False), (0.5, True)])
def test_the_page_has_every_answer_and_where_it_was_measured(load, said):
    answers = {
        question.name: Answer([markers(step) for step in question.steps], 75.0, load)
        for question in QUESTIONS
    }
    machine = {"cores": 2, "device": "a CPU", "torch": "2.13.0", "threads": 1, "load": load}
    text = page(answers, machine)
    assert "with torch 2.13.0 on 2 cores (a CPU), threads per run: 1." in text
    assert ("Other processes used 50% of the CPU time" in text) == said
    assert " ".join(text.split()).count("Run time: 1.2 min.") == len(QUESTIONS)
    assert "{" not in text
