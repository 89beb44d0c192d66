"""Many runs: plain rows, groups that differ in more than the seed, curves with bands, final values."""

import csv
import io

import pytest

from lightning_fl_ext.report import read_history, read_runs, render_runs
from lightning_fl_ext.report.overlay import final_table
from lightning_fl_ext.report.runs import find_runs, group_runs, rows_of, to_csv
from lightning_fl_ext.server import LedgerError
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.wire import MaskExchange, WeightExchange


@pytest.fixture
def sweep(tmp_path, write_ledger):
    """Two settings, three seeds each; the value is known by formula."""
    for fraction in (0.5, 1.0):
        for seed in (0, 1, 2):
            rounds = [
                RoundRecord(n, metrics={"val_f1": 0.1 * n + 0.01 * seed + fraction / 10, "val_loss": 1.0 / n})
                for n in (1, 2, 3)
            ]
            fingerprint = {"strategy": "ExactFedAvg", "strategy.fraction_train": fraction, "seed": seed}
            write_ledger(tmp_path / f"f{fraction}" / f"s{seed}", rounds, fingerprint)
    return tmp_path


def test_rows_have_the_run_the_round_the_settings_and_the_metrics(sweep):
    rows = read_runs(sweep)
    assert len(rows) == 18
    assert [row["round"] for row in rows[:3]] == [1, 2, 3]
    first = rows[0]
    assert (first["seed"], first["strategy.fraction_train"], first["finished"]) == (0, 0.5, True)
    assert first["val_f1"] == pytest.approx(0.15)
    assert len({row["run"] for row in rows}) == 6  # folders of one name are told by their paths
    assert read_runs(sweep / "f0.5" / "s0") == [row | {"run": "s0"} for row in rows[:3]]


def test_rows_are_written_as_csv_with_every_column(sweep):
    rows = read_runs(sweep)
    again = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(again) == len(rows)
    assert [float(row["val_f1"]) for row in again] == [row["val_f1"] for row in rows]
    assert to_csv(rows_of(find_runs(sweep))) == to_csv(rows)


def test_a_metric_does_not_write_over_what_a_row_says_of_its_run(tmp_path, write_ledger):
    hostile = dict.fromkeys(("run", "round", "finished", "seed", "strategy"), 99.0)
    fingerprint = {"strategy": "ExactFedAvg", "seed": 3}
    write_ledger(tmp_path / "a", [RoundRecord(1, metrics=hostile)], fingerprint)
    (row,) = read_runs(tmp_path)
    assert [row[n] for n in hostile] == ["a", 1, True, 3, "ExactFedAvg"]
    assert [row[f"metric {n}"] for n in hostile] == [99.0] * 5


def test_folders_that_are_linked_to_are_looked_into_and_each_run_is_read_once(tmp_path, write_ledger):
    for name in "ab":
        write_ledger(tmp_path / "runs" / name, [RoundRecord(1)], {"seed": 0})
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "b")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "one").symlink_to(tmp_path / "runs" / "a")
    assert [run.name for run in find_runs(tmp_path / "runs")] == ["a", "b"]
    assert [run.name for run in find_runs(tmp_path / "chosen")] == ["a"]


def test_a_run_that_ended_with_no_number_is_not_hidden_in_the_mean_of_the_others(tmp_path, write_ledger):
    for seed, last in enumerate((0.25, 0.75, float("nan"))):
        rounds = [RoundRecord(n, metrics={"val_f1": value}) for n, value in ((1, 0.5), (2, last))]
        write_ledger(tmp_path / f"s{seed}", rounds, {"seed": seed})
    ((_, count, values),) = final_table(group_runs(find_runs(tmp_path)))[1]
    assert (count, values) == (3, ["0.5 ± 0.3536 (2 of 3)"])
    assert "0.5 ± 0.3536 (2 of 3)" in render_runs(find_runs(tmp_path))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "a\r=", "a\n="])
def test_no_cell_of_the_csv_is_a_formula(start):
    text = to_csv([{"run": f"{start}1+1", f"{start}f1": -0.5}])
    (columns, row) = csv.reader(text.splitlines())  # as lines, whatever a program takes for the end of one
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in (*columns, row[0]))
    assert row[1] == "-0.5"  # a number stays one


def test_runs_that_differ_in_their_seed_alone_are_one_group(sweep):
    groups = group_runs(find_runs(sweep))
    assert [(g.label, len(g.runs)) for g in groups] == [
        ("strategy.fraction_train 0.5", 3),
        ("strategy.fraction_train 1.0", 3),
    ]
    assert groups[0].values("val_f1")[3] == pytest.approx([0.35, 0.36, 0.37])
    names, rows = final_table(groups)
    assert names == ["val_f1", "val_loss"]
    assert rows[0] == ("strategy.fraction_train 0.5", 3, ["0.36 ± 0.01", "0.3333 ± 0"])


def test_what_travels_tells_groups_apart(tmp_path, write_ledger):
    exchanges = {
        "all": repr(WeightExchange()),
        "body": repr(WeightExchange(exclude=("head.*", "norm.*"))),
        "masks": repr(MaskExchange()),
        "odd": "WeightExchange(include=('*',), exclude=('it''s',) * 9)",
    }
    for folder, exchange in exchanges.items():
        for seed in (0, 1):
            rounds = [RoundRecord(1, digest=f"{folder}{seed}", metrics={"val_f1": 0.5})]
            write_ledger(tmp_path / f"{folder}-{seed}", rounds, {"seed": seed, "exchange": exchange})
    assert [(g.label, len(g.runs)) for g in group_runs(find_runs(tmp_path))] == [
        ("include *", 2),
        ("exclude head.* norm.*, include *", 2),
        (f"exchange {exchanges['masks']}", 2),
        (f"exchange {exchanges['odd']}", 2),
    ]


def test_lists_that_the_command_line_was_told_tell_groups_apart(tmp_path, write_ledger):
    for folder, told in (("all", ""), ("body", 'exclude = ["head.*", "norm.*"]\n')):
        write_ledger(tmp_path / folder, [RoundRecord(1, digest=folder)], {"seed": 0})
        (tmp_path / folder / "run.toml").write_text(f"seed = 0\n{told}")
    assert [g.label for g in group_runs(find_runs(tmp_path))] == ["–", "exclude head.* norm.*"]


@pytest.mark.parametrize("nested", [True, False])
def test_runs_of_one_seed_with_other_weights_are_not_seeds_of_one_setting(tmp_path, write_ledger, nested):
    for rate in ("fast", "slow"):  # a client's rate, which no ledger knows
        for seed in (0, 1):
            folder = tmp_path / rate / f"s{seed}" if nested else tmp_path / f"{rate}-s{seed}"
            write_ledger(folder, [RoundRecord(1, digest=f"{rate}{seed}")], {"seed": seed})
    found = [(g.label, len(g.runs)) for g in group_runs(find_runs(tmp_path))]
    alone = [(f"{rate}-s{seed}", 1) for rate in ("fast", "slow") for seed in (0, 1)]
    assert found == ([("fast", 2), ("slow", 2)] if nested else alone)


def test_models_of_other_shapes_are_not_seeds_of_one_setting(tmp_path, write_ledger):
    for seed, shape in enumerate(("float32[2]", "float32[3]")):
        write_ledger(tmp_path / f"s{seed}", [RoundRecord(1)], {"seed": seed, "model.bias": shape})
    assert [(g.label, len(g.runs)) for g in group_runs(find_runs(tmp_path))] == [("s0", 1), ("s1", 1)]


def test_a_copy_of_a_run_stays_in_its_group(tmp_path, write_ledger):
    rounds = [RoundRecord(n, digest=f"{n}") for n in (1, 2, 3)]
    write_ledger(tmp_path / "a", rounds, {"seed": 0})
    write_ledger(tmp_path / "b", rounds[:2], {"seed": 0}, finished=False)
    assert [(g.label, len(g.runs)) for g in group_runs(find_runs(tmp_path))] == [("all runs", 2)]


def test_the_page_has_a_line_and_a_band_for_each_group(sweep):
    html = render_runs(find_runs(sweep))
    assert html.count('class="band"') == 4  # two groups, two metrics
    assert html.count("<h3>") == 2
    assert "0.36 ± 0.01" in html
    assert "<script" not in html
    assert html.count("not finished") == 0
    alone = render_runs(find_runs(sweep / "f0.5" / "s0"))
    assert 'class="band"' not in alone


def test_runs_of_other_lengths_and_metrics_share_the_page(tmp_path, write_ledger):
    write_ledger(tmp_path / "a", [RoundRecord(1, metrics={"val_f1": 0.5})], {"seed": 1})
    longer = [RoundRecord(n, metrics={"val_f1": 0.6, "val_mae": 1.0}) for n in (1, 2, 3)]
    write_ledger(tmp_path / "b", longer, {"seed": 2}, finished=False)
    write_ledger(tmp_path / "c", [], {"seed": 3}, finished=False)
    runs = find_runs(tmp_path)
    assert "Of 2 runs that are not finished, the value so far" in render_runs(runs)
    assert final_table(group_runs(runs))[1][0][2][0] == "0.55 ± 0.07071 (2 of 3)"


def test_hostile_names_are_escaped(tmp_path, write_ledger):
    name = "<script>alert(1)</script>"
    for seed in (1, 2):
        write_ledger(
            tmp_path / f"{seed}",
            [RoundRecord(1, metrics={name: 1.0})],
            {"seed": seed, "strategy": name * seed},
        )
    assert "<script" not in render_runs(find_runs(tmp_path))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="there is no run in"):
        read_runs(tmp_path)


def test_a_damaged_ledger_is_named_on_the_page(sweep):
    ledger = sweep / "f0.5" / "s0" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"ExactFedAvg", b"OtherFedAvg"))
    assert read_history(ledger).problems
    assert "These ledgers are not sound" in render_runs(find_runs(sweep))
