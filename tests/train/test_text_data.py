from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wavelet_core import ConfigurationError
from wavelet_core.config import parse
from wavelet_train.datasets import SPLITS, part_of, split_of
from wavelet_train.python_stdlib import PythonStandardLibrary, read_source, topics
from wavelet_train.text_files import TextFiles


def text_files(**fields: object) -> TextFiles:
    return TextFiles(parse(TextFiles.Config, fields))


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "texts", **{f"file{number}": f"text {number}\n" for number in range(100)})


def test_splits_hold_90_5_and_5_percent_of_names() -> None:
    splits = [split_of(f"folder/file{number}.py") for number in range(10_000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([0.90, 0.05, 0.05], abs=0.01)


def test_a_name_never_changes_its_split() -> None:
    # Fixed by the hash: the same on every machine, now and later.
    assert [split_of(name) for name in ("abc.py", "unittest/main.py", "email/architecture.rst")] == [
        "train",
        "validation",
        "test",
    ]


def test_one_text_is_cut_at_line_ends() -> None:
    text = "".join(f"line {number:03}\n" for number in range(200))
    parts = ["".join(part_of(lambda: [text[:999], text[999:]], split)) for split in SPLITS]
    assert "".join(parts) == text
    assert [part.count("\n") for part in parts] == pytest.approx([180, 10, 10], abs=1)
    assert all(part.endswith("\n") for part in parts)


class TestPythonStandardLibrary:
    dataset = PythonStandardLibrary()

    def test_it_holds_the_library_and_nothing_else(self) -> None:
        paths = [str(path) for path in self.dataset.paths()]
        assert {"abc.py", "json/decoder.py", "pydoc_data/topics.py", "LICENSE.txt"} <= set(paths)
        left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        assert not [path for path in paths if left_out & set(path.split("/")[:-1])]
        assert not [path for path in paths if "_sysconfigdata" in path]

    def test_whole_files_go_to_one_split(self) -> None:
        documents = {split: list(self.dataset.documents(split)) for split in SPLITS}
        main = Path(sys.modules["unittest"].__file__ or "").with_name("main.py").read_text(encoding="utf-8")
        assert split_of("unittest/main.py") == "validation"
        assert [main in documents[split] for split in SPLITS] == [False, True, False]
        sizes = {split: sum(map(len, texts)) for split, texts in documents.items()}
        assert sizes["train"] > 5_000_000
        assert min(sizes.values()) > 100_000

    def test_the_language_reference_is_prose(self) -> None:
        texts = topics("# generated\ntopics = {'if': 'The \"if\" statement\\n' 'is used', 'for': 'Loops'}\n")
        assert texts == ['The "if" statement\nis used', "Loops"]
        assert any(document.startswith('The "if" statement\n') for document in self.dataset.documents("train"))

    def test_every_process_sees_the_same_documents(self) -> None:
        code = (
            "from wavelet_train.python_stdlib import PythonStandardLibrary as P; d = P();"
            "import json; print(json.dumps([d.fingerprint(), *d.documents('validation')]))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert json.loads(run.stdout) == [self.dataset.fingerprint(), *self.dataset.documents("validation")]

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"# coding: latin-1\nx = '\xe9'\n", "# coding: latin-1\nx = 'é'\n"),
            (b"\xef\xbb\xbfx\r\ny", "x\ny"),
            (b"a\xffb", "a\ufffdb"),
        ],
    )
    def test_source_is_decoded_like_python_does(self, content: bytes, text: str) -> None:
        assert read_source(content) == text

    def test_a_library_without_source_is_refused(self, tmp_path: Path) -> None:
        dataset = PythonStandardLibrary()
        dataset.root = tmp_path
        with pytest.raises(ConfigurationError, match="python_stdlib has no train documents"):
            next(dataset.documents("train"))


class TestTextFiles:
    def test_files_of_a_folder_are_dealt_by_their_path(self, folder: Path) -> None:
        dataset = text_files(path=str(folder))
        for split in SPLITS:
            names = sorted(path.name for path in folder.iterdir() if split_of(path.name) == split)
            assert list(dataset.documents(split)) == [(folder / name).read_text() for name in names]

    def test_moving_the_folder_changes_nothing(self, folder: Path, tmp_path: Path) -> None:
        before = text_files(path=str(folder))
        fingerprint = before.fingerprint()
        documents = list(before.documents("validation"))
        moved = text_files(path=str(folder.rename(tmp_path / "elsewhere")))
        assert list(moved.documents("validation")) == documents
        assert moved.fingerprint() == fingerprint

    def test_any_change_changes_the_fingerprint(self, folder: Path) -> None:
        before = text_files(path=str(folder)).fingerprint()
        (folder / "file7.txt").write_text("text 8\n")  # as long as it was
        assert text_files(path=str(folder)).fingerprint() != before

    def test_splits_can_be_named(self, tmp_path: Path) -> None:
        write(tmp_path / "more", deep="below\n")
        write(tmp_path, a="first\n", b="second\n", c="third\n")
        dataset = text_files(
            train=[str(tmp_path / "a.txt"), str(tmp_path / "more")],
            validation=str(tmp_path / "b.txt"),
        )
        assert list(dataset.documents("train")) == ["first\n", "below\n"]
        assert list(dataset.documents("validation")) == ["second\n"]
        with pytest.raises(ConfigurationError, match=r"data\.dataset\.test: names no text"):
            next(dataset.documents("test"))

    def test_one_file_is_cut(self, tmp_path: Path) -> None:
        text = "".join(f"line {number}\n" for number in range(400))
        file = write(tmp_path, book=text) / "book.txt"
        dataset = text_files(path=str(file))
        parts = [list(dataset.documents(split)) for split in SPLITS]
        assert [len(part) for part in parts] == [1, 1, 1]
        assert "".join(part[0] for part in parts) == text
        named = text_files(train=str(file), validation=str(file), test=str(file))
        assert dataset.fingerprint() != named.fingerprint()

    def test_the_pattern_and_hidden_names_choose_files(self, folder: Path) -> None:
        (folder / "picture.png").write_bytes(b"\x89PNG")
        (folder / ".hidden").mkdir()
        (folder / ".hidden" / "file.txt").write_bytes(b"\xff")
        found = text_files(train=str(folder), pattern="*.txt")
        assert len(list(found.documents("train"))) == 100

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
        assert list(text_files(train=str(tmp_path)).documents("train")) == ["hello\r\n"]

    def test_a_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"data\.dataset\.path: there is no file or folder .*nowhere"):
            text_files(path=str(tmp_path / "nowhere"))
        write(tmp_path, a="x")
        with pytest.raises(ConfigurationError, match=r"data\.dataset\.validation: there is no file or folder"):
            text_files(train=str(tmp_path), validation=str(tmp_path / "nowhere"))

    def test_an_empty_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"data\.dataset\.path: the folder .* holds no files; put text"):
            text_files(path=str(tmp_path))
        write(tmp_path, a="x")
        with pytest.raises(ConfigurationError, match=r"holds no files that match data\.dataset\.pattern='\*\.md'"):
            text_files(path=str(tmp_path), pattern="*.md")

    def test_a_file_that_is_not_utf8_is_named(self, folder: Path) -> None:
        (folder / "file3.txt").write_bytes(b"caf\xe9\n")
        with pytest.raises(ConfigurationError, match=r"file3\.txt is not UTF-8 text \(byte 3 is 0xe9\)"):
            list(text_files(train=str(folder)).documents("train"))

    def test_files_that_are_not_utf8_are_skipped_where_that_is_wanted(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        without = text_files(path=str(folder), skip_undecodable=True)
        assert capsys.readouterr().err == ""
        for name in ("file3a.bin", "file3b.bin"):
            (folder / name).write_bytes(b"caf\xe9")
        found = text_files(path=str(folder), skip_undecodable=True)
        message = capsys.readouterr().err
        assert "skipped 2 of the 102 files" in message
        assert "file3a.bin" in message
        assert message.count("\n") == 1
        assert found.fingerprint() == without.fingerprint()
        for split in SPLITS:
            assert list(found.documents(split)) == list(without.documents(split))
            assert found.size(split) == without.size(split)

    def test_a_file_that_is_named_itself_is_never_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "file.txt").write_bytes(b"caf\xe9")
        named = text_files(train=str(tmp_path / "file.txt"), skip_undecodable=True)
        with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
            list(named.documents("train"))
        with pytest.raises(ConfigurationError, match="none of the 1 files"):
            text_files(path=str(tmp_path), skip_undecodable=True)

    def test_a_split_without_documents_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, a="hello\n")
        missing = next(split for split in SPLITS if split != split_of("a.txt"))
        with pytest.raises(ConfigurationError, match=f"none of the 1 files in .* goes to the {missing} split"):
            next(text_files(path=str(tmp_path)).documents(missing))
        with pytest.raises(ConfigurationError, match="too short to cut a validation split"):
            next(text_files(path=str(tmp_path / "a.txt")).documents("validation"))

    def test_files_without_text_are_no_documents(self, tmp_path: Path) -> None:
        write(tmp_path, a="")
        with pytest.raises(ConfigurationError, match="the train split has no text: all of its files are empty"):
            next(text_files(train=str(tmp_path)).documents("train"))

    @pytest.mark.parametrize("fields", [{}, {"path": "a", "train": "b"}])
    def test_one_way_of_naming_files_is_needed(self, fields: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match="give either path"):
            text_files(**fields)
