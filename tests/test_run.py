import os

import pytest

from audiolora.run import WHOLE, Run, open_run, read_run

SETTINGS = {"model": "m", "r": {"conv": 4}, "epochs": 2, "test": 0.5}


def test_a_new_run_remembers_its_settings(tmp_path):
    run = open_run(tmp_path / "runs" / "a", SETTINGS)
    assert read_run(run.folder) == run and run.settings == SETTINGS
    assert not run.begun and not run.finished and run.whole_checkpoints() == []
    assert run.adapter == run.folder / "adapter" and run.training == run.folder / "training"


def test_settings_are_compared_as_json_holds_them(tmp_path):
    begin(open_run(tmp_path / "a", {"sizes": (1, 2)}))
    assert open_run(tmp_path / "a", {"sizes": [1, 2]}).settings == {"sizes": [1, 2]}


def begin(run: Run) -> Run:
    run.write("split.json", {"train": []})
    return run


def test_a_run_that_has_begun_refuses_other_settings_and_names_each(tmp_path):
    assert begin(open_run(tmp_path / "a", SETTINGS)).begun
    assert open_run(tmp_path / "a", SETTINGS).settings == SETTINGS
    changed = {"model": "m", "r": {"conv": 8}, "epochs": 3, "seed": 1}
    message = (
        r"epochs was 2, now 3; r was \{'conv': 4\}, now \{'conv': 8\}; seed was None, now 1; test was 0.5, now None\. "
        "Choose another --name, or start it anew with --fresh"
    )
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "a", changed)
    assert read_run(tmp_path / "a").settings == SETTINGS


def test_a_run_that_has_not_begun_takes_corrected_settings(tmp_path):
    open_run(tmp_path / "a", SETTINGS)
    assert open_run(tmp_path / "a", {"model": "n"}).settings == {"model": "n"}
    assert read_run(tmp_path / "a").settings == {"model": "n"}


def test_fresh_deletes_a_run(tmp_path):
    run = begin(open_run(tmp_path / "a", SETTINGS))
    run.write("summary.json", {})
    assert run.finished
    (tmp_path / ".a.old").mkdir()  # of an interrupted deletion
    new = open_run(tmp_path / "a", {"model": "n"}, fresh=True)
    assert not new.finished and not new.begun and new.settings == {"model": "n"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, fresh):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run; choose another --name"):
        open_run(tmp_path, SETTINGS, fresh=fresh)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_reading_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    run = open_run(tmp_path / "a", SETTINGS)
    assert run.read("before.json") is None
    run.write("before.json", ["à"])
    assert run.read("before.json") == ["à"]
    for damage in (b'["half', b"\xff\xfe"):
        (run.folder / "before.json").write_bytes(damage)
        with pytest.raises(ValueError, match=r"before.json: not a JSON file .*--fresh"):
            run.read("before.json")


def test_whole_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    run = open_run(tmp_path / "a", SETTINGS)
    for step in (12, 3, 100, 7):
        (run.training / f"checkpoint-{step}").mkdir(parents=True)
        (run.training / f"checkpoint-{step}" / WHOLE).touch()
    (run.training / "checkpoint-100" / WHOLE).unlink()
    assert [path.name for path in run.whole_checkpoints()] == ["checkpoint-3", "checkpoint-7", "checkpoint-12"]
