"""sample.py: the text of a trained model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import sample
from data.tokenizers import ByteTokenizer, CharTokenizer
from model_builder import GPT
from tests.integration.runs import Workshop, checkpoint_at, log_of, make_dataset


@pytest.fixture(scope="module")
def out_dir(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, trained well enough to write words."""
    workshop = Workshop(dataset, tmp_path_factory.mktemp("sample") / "out")
    workshop.train("--max_iters=150", "--learning_rate=0.01", "--batch_size=8")
    return workshop.out_dir


@pytest.fixture
def text(out_dir: Path, capsys):
    """What sample.py prints for some flags."""

    def run(*flags: str) -> str:
        capsys.readouterr()
        sample.main([f"--out_dir={out_dir}", "--device=cpu", "--dtype=float32", *flags])
        return capsys.readouterr().out

    return run


class TestSampling:
    def test_it_writes_words(self, text) -> None:
        words = text("--max_new_tokens=60", "--temperature=0", "--prompt=the ").split()
        assert {"the", "cat", "sat", "on", "a", "mat."} & set(words[1:])

    def test_a_seed_repeats(self, text) -> None:
        first = text("--seed=1", "--max_new_tokens=40")
        assert first == text("--seed=1", "--max_new_tokens=40")
        assert first != text("--seed=2", "--max_new_tokens=40")

    def test_samples_of_one_call_differ(self, text) -> None:
        both = text("--num_samples=2", "--max_new_tokens=40", "--prompt=#")
        _, first, second = both.split("#")
        assert first != second

    def test_ways_to_name_the_run(self, text, out_dir: Path) -> None:
        checkpoint = checkpoint_at(out_dir / "run", 150)
        texts = {
            text(f"--run={where}", "--max_new_tokens=20")
            for where in ("latest", "run", out_dir / "run", checkpoint)
        }
        assert len(texts) == 1

    def test_prompt_file(self, text, tmp_path: Path) -> None:
        file = tmp_path / "prompt.txt"
        file.write_text("Öl the cat", encoding="utf-8")
        from_file = text(f"--prompt_file={file}", "--max_new_tokens=20")
        assert from_file.startswith("Öl the cat")
        assert from_file == text("--prompt=Öl the cat", "--max_new_tokens=20")

    def test_top_k_of_one_is_greedy(self, text) -> None:
        greedy = text("--temperature=0", "--max_new_tokens=30")
        assert text("--top_k=1", "--max_new_tokens=30") == greedy
        assert text("--top_p=1e-6", "--max_new_tokens=30") == greedy
        assert text("--temperature=2", "--max_new_tokens=30") != greedy

    def test_prompts_longer_than_the_block(self, text) -> None:
        prompt = "the cat sat on a mat. " * 5
        printed = text(f"--prompt={prompt}", "--max_new_tokens=5")
        assert len(printed.encode()) >= len(prompt) + 5

    def test_a_damaged_newest_checkpoint_is_passed_by(self, workshop: Workshop, capsys) -> None:
        run = workshop.train("--max_iters=2", "--eval_interval=1")
        os.truncate(checkpoint_at(run, 2) / "model.safetensors", 100)
        capsys.readouterr()
        sample.main([f"--out_dir={workshop.out_dir}", "--max_new_tokens=1"])
        said = capsys.readouterr().err
        assert "Skipped the damaged checkpoint step_00000002" in said
        assert "step_00000001:" in said


class TestVocabulary:
    def test_ids_that_no_token_has_are_never_drawn(self, workshop: Workshop, capsys) -> None:
        """A model of 4000 tokens for 257: nearly all that an untrained one draws."""
        workshop.train("--max_iters=1", "--vocab_size=4000")
        capsys.readouterr()
        sample.main([f"--out_dir={workshop.out_dir}", "--num_samples=5", "--prompt=a"])
        assert len(capsys.readouterr().out) > 25

    def test_stream_keeps_to_the_first_ids(self) -> None:
        sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 50}
        model = GPT(GPT.Config(**sizes))
        idx = torch.zeros(1, 1, dtype=torch.long)
        assert max(int(token) for token in model.stream(idx, 40, vocab_size=3)) < 3
        assert max(int(token) for token in model.stream(idx, 40)) >= 3

    def test_bytes_of_older_versions_resume_and_sample(
        self, workshop: Workshop, tmp_path: Path, capsys
    ) -> None:
        """Their vocabulary has no end-of-text token."""
        words, tokenizer = "the cat sat. " * 40, ByteTokenizer(end_of_text=False)
        folder = make_dataset(tmp_path / "old", tokenizer, words, words)
        workshop.train(f"--dataset={folder}", "--max_iters=1")
        run = workshop.train(f"--dataset={folder}", "--max_iters=2", "--resume=auto")
        assert log_of(run)["config"]["vocab_size"] == 256
        assert len(log_of(run)["training_iterations"]) == 2
        capsys.readouterr()
        sample.main([f"--out_dir={workshop.out_dir}", "--max_new_tokens=20", "--prompt=a"])
        assert len(capsys.readouterr().out) > 1

    def test_characters_that_the_data_lack(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = make_dataset(tmp_path / "d", CharTokenizer("ab"), "ab" * 200, "ba" * 50)
        workshop.train(f"--dataset={folder}", "--max_iters=1")
        with pytest.raises(ValueError, match="character 'z'"):
            sample.main([f"--out_dir={workshop.out_dir}", "--prompt=abz"])


class TestStream:
    def test_characters_of_several_bytes_come_whole(self) -> None:
        tokenizer = ByteTokenizer()
        tokens = (torch.tensor([[byte]]) for byte in "aÖ日".encode())
        assert list(sample.text_of(tokens, tokenizer)) == ["a", "", "Ö", "", "", "日", ""]

    def test_bytes_that_are_no_character(self) -> None:
        tokens = (torch.tensor([[byte]]) for byte in b"a\xff\xe6\x97")
        assert "".join(sample.text_of(tokens, ByteTokenizer())) == "a\ufffd\ufffd"

    def test_end_of_text_ends_it_before_more_is_made(self) -> None:
        tokens = iter([torch.tensor([[token]]) for token in (*b"a\xe6", 256, *b"bc")])
        assert "".join(sample.text_of(tokens, ByteTokenizer())) == "a\ufffd"
        assert [int(token) for token in tokens] == [*b"bc"]

    def test_text_comes_while_it_is_made(self) -> None:
        """The first piece before the second token is asked for."""
        asked = []

        def tokens():
            for byte in b"ab":
                asked.append(byte)
                yield torch.tensor([[byte]])

        assert next(sample.text_of(tokens(), ByteTokenizer())) == "a"
        assert len(asked) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--prompt=", "the prompt is empty"),
            ("--prompt_file=no_such_file.txt", "cannot read --prompt_file=no_such_file.txt"),
            (f"--seed={10**23}", f"seed={10**23} must be at least 0 and below"),
            ("--num_samples=0", "num_samples=0 must be at least 1"),
            ("--max_new_tokens=-1", "max_new_tokens=-1 must be at least 0"),
            ("--temperature=-1", "temperature=-1.0 must be 0"),
            ("--temperature=nan", "temperature=nan must be 0"),
            ("--temperature=1e-320", "temperature=1e-320 must be 0"),
            ("--top_p=nan", "top_p=nan must be above 0"),
            ("--prompt=\udcff", "is not valid UTF-8"),
            ("--top_k=0", "top_k=0 must be at least 1"),
            ("--top_p=1.5", "top_p=1.5 must be above 0"),
            ("--run=rum", "did you mean 'run'"),
        ],
    )
    def test_values(self, out_dir: Path, flag: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            sample.main([f"--out_dir={out_dir}", flag])

    def test_a_prompt_file_that_is_no_text(self, out_dir: Path, tmp_path: Path) -> None:
        file = tmp_path / "image"
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="cannot read --prompt_file="):
            sample.main([f"--out_dir={out_dir}", f"--prompt_file={file}"])
