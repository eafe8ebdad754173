# ruff: noqa: C408  (rows read better as keywords)
"""The report: its numbers are the data's, it stands alone, and every declared picture is there."""

import html
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from experiments.report import analysis, figures
from experiments.report import html as report

EFFICIENCY = {
    "optimum": 1.0,
    "lp-lookahead": 0.997,
    "resolve": 0.975,
    "uniform": 0.91,
    "fixed-2": 0.87,
    "random": 0.57,
}
BUDGETS = {150: 0.15, 300: 0.3, 600: 0.6}
TIERS = ["low", "mid", "high"]
SVG = "http://www.w3.org/2000/svg"


def simulate(
    run: Path,
    efficiency: dict[str, float] = EFFICIENCY,
    exams: int = 60,
    families: tuple[str, ...] = ("signal",),
    orders: tuple[str, ...] = ("random",),
    sampled: tuple[str, ...] = (),
    seeds: dict[str, int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a run folder with the patterns of a real one: better agents waste less, tight budgets hurt more."""
    rng = np.random.default_rng(seed)
    tasks = 10
    tables: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in "settings references scores positions choices tier_calibration tasks trajectory".split()  # noqa: SIM905
    }
    signal = np.linspace(0.05, 0.95, 5)
    setting = -1
    for family in families:
        base = rng.normal(1, 0.12, exams)
        effect = rng.normal(0, 0.05, 90)
        questions = rng.permuted(np.tile(np.arange(90), (exams, 1)), axis=1)[:, :tasks]
        base = base + effect[questions].sum(1) if family == "recorded" else base
        for order in orders:
            for budget, fraction in BUDGETS.items():
                setting += 1
                hard = 0.94 if order == "hard_first" else 1.0
                optimum = np.clip(base * 8.2 * (1 - np.exp(-3.4 * fraction**0.75)), 0.4, 9.5)
                upper = optimum * 1.02 if family == "latent" else optimum
                informed = optimum * (1 + 0.05 / fraction**0.5)
                oracle = np.minimum(informed * (1 + 0.11 / fraction**0.5), 10)
                tables["settings"].append(
                    dict(
                        setting=setting, family=family, label=f"{family} N={tasks} t={fraction:g} {order}",
                        num_tasks=tasks, budget=budget, budget_fraction=fraction, order=order, preview=True,
                        beliefs="published", coupling="independent", synthetic=family != "recorded", num_tiers=3,
                        tier_names=TIERS, exams=exams,
                    )
                )  # fmt: skip
                for e in range(exams):
                    tables["references"].append(
                        dict(setting=setting, exam=e, oracle=oracle[e], informed=informed[e], optimum=optimum[e],
                             optimum_upper=upper[e])
                    )  # fmt: skip
                    tables["tasks"] += [
                        dict(setting=setting, exam=e, position=i, question=int(q), group=int(q) % 3, weight=1.0)
                        for i, q in enumerate(questions[e])
                    ]
                for agent, share in efficiency.items():
                    play = np.random.default_rng([seed, setting, len(agent)])
                    loss = (1 - share) * (0.3 / fraction) ** 0.4
                    for s in range((seeds or {}).get(agent, 1)):
                        score = optimum * (1 - loss * play.gamma(4, 0.25, exams) * (1 if agent == "optimum" else hard))
                        if agent == "optimum":
                            score = optimum.copy()
                        elif agent in sampled:
                            score = play.binomial(10, np.clip(score / 10, 0, 1)).astype(float)
                        spend = np.clip(0.92 - 0.6 * loss + 0.03 * play.normal(size=exams), 0.2, 1) * budget
                        for e in range(exams):
                            tables["scores"].append(
                                dict(setting=setting, agent=agent, seed=s, exam=e,
                                     evaluation="sampled" if agent in sampled else "exact", score=score[e],
                                     tokens=spend[e], truncated=min(0.9, 0.05 + loss), skipped=0.5 * (1 - fraction),
                                     reached=1 - 0.3 * loss)
                            )  # fmt: skip
                        left = np.linspace(0.05, 0.95, 10)
                        for d, level in enumerate(signal):
                            for r, rest in enumerate(left):
                                if r < 9 and rest < 0.15 * d / 4:
                                    continue
                                want = np.array([2.5 * level - 0.6, 1.2 - level, 0.6 - abs(level - 0.5), rest - level])
                                p = np.exp(want * (2 + 6 * share))
                                mass = np.exp(-((rest - 0.6) ** 2) / 0.1) * p / p.sum()
                                tables["choices"] += [
                                    dict(setting=setting, agent=agent, seed=s, difficulty_bin=d, remaining_bin=r,
                                         action=a, mass=float(m),
                                         difficulty_label=f"{level - 0.05:.2f} to {level + 0.05:.2f}")
                                    for a, m in enumerate(mass)
                                ]  # fmt: skip
                        for i in range(tasks):
                            tables["positions"].append(
                                dict(setting=setting, agent=agent, seed=s, position=i, reached=1 - loss * i / tasks,
                                     correct=0.55 - 0.2 * loss, value=0.55, skip=0.2 + 0.3 * i / tasks)
                            )  # fmt: skip
                        for k in range(3):
                            believed = 0.45 + 0.2 * k
                            tables["tier_calibration"].append(
                                dict(setting=setting, agent=agent, seed=s, action=k + 1, expected_success=believed,
                                     actual_success=believed - 0.4 * loss, expected_tokens=10 * 3.2**k,
                                     actual_tokens=11 * 3.2**k, mass=3.0 - k)
                            )  # fmt: skip
                    remaining = budget
                    for i in range(tasks):
                        if remaining <= 0:
                            break
                        action = int(play.integers(0, 4))
                        tokens = 0 if action == 0 else int(play.gamma(4, 10 * 3.2 ** (action - 1) / 4) + 1)
                        cut = tokens > remaining
                        used = min(tokens, remaining)
                        tables["trajectory"].append(
                            dict(setting=setting, agent=agent, exam=0, position=i, action=action, tokens=used,
                                 correct=bool(play.random() < 0.6) and action > 0 and not cut, overspent=cut,
                                 remaining_before=remaining, remaining_after=remaining - used)
                        )  # fmt: skip
                        remaining -= used
    run.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), run / f"{name}.parquet")
    config = {"version": "0.1.0", "git": "0123456789abcdef", "created": "2026-01-01T12:00:00Z", "seed": 7}
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = simulate(tmp_path_factory.mktemp("run"), sampled=("random",), seeds={"uniform": 3})
    report.write_report(folder, resamples=400)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def cells(page: str, setting: int, agent: str) -> list[str]:
    """Sort keys of an agent's row in a setting's table."""
    table = re.findall(r"<table>.*?</table>", page, re.DOTALL)[setting]
    row = re.search(rf'<tr data-agent="{re.escape(agent)}".*?</tr>', table, re.DOTALL)
    assert row is not None
    return re.findall(r'<td data-v="([^"]*)"', row[0])


def test_table_holds_an_independent_computation(run: Path, page: str) -> None:
    scores, references = (pq.read_table(run / f"{n}.parquet").to_pylist() for n in ("scores", "references"))
    for setting, budget in enumerate(BUDGETS):
        values = {n: np.mean([r[n] for r in references if r["setting"] == setting]) for n in ("optimum", "oracle")}
        for agent in EFFICIENCY:
            mine = [r for r in scores if r["setting"] == setting and r["agent"] == agent]
            score, tokens = (np.mean([r[n] for r in mine]) for n in ("score", "tokens"))
            found = cells(page, setting, agent)
            assert found[0] == agent
            expected = [score, score / values["optimum"]]
            np.testing.assert_allclose([float(x) for x in found[2:4]], expected)
            expected = [values["optimum"] - score, 1 - score / values["oracle"], tokens, tokens / budget]
            np.testing.assert_allclose([float(x) for x in found[5:9]], expected, atol=1e-12)
            assert found[1] == ("sampled" if agent == "random" else "exact")
            shown = f"{100 * score / values['optimum']:.1f}"
            assert f"<b>{shown}</b>" in page


def test_report_stands_alone(page: str) -> None:
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import|<script[^>]+src|fetch\(|XMLHttpRequest", page)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'xlink:href="([^"]*)"', page))
    assert page.startswith("<!DOCTYPE html>")


def test_every_section_is_there(page: str) -> None:
    for title in (
        "Score against budget", "Where the rest went", "Score against tokens", "Tier choice by difficulty", "One exam",
        "Performance profile", "Probability of improvement", "Calibration of tier choice", "By place in the exam",
        "Configuration",
    ):  # fmt: skip
        assert re.search(rf"<h[23][^>]*>{title}", page), title
    assert page.count('<svg role="img"') == 10
    assert "−0.00<" not in page
    assert "nan" not in re.sub(r"<svg.*?</svg>|<script.*?</script>", "", page, flags=re.DOTALL).lower().split()


def test_identifiers_in_pictures_are_unique(page: str) -> None:
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page))
    for a, b in set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)):
        assert (a or b) in identifiers


def test_summary_files_agree(run: Path) -> None:
    table = pq.read_table(run / "summary.parquet")
    document = json.loads((run / "summary.json").read_text())
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    assert table.num_rows == len(document["results"]) == 3 * len(EFFICIENCY)
    assert table.to_pylist() == document["results"]
    for r in document["results"]:
        oracle = document["settings"][r["setting"]]["oracle"]["value"]
        assert r["luck"] + r["information"] + r["policy"] == pytest.approx(oracle - r["score"])
        for name in ("score", "normalised", "policy", "gap_ratio"):
            if r["agent"] != "optimum" or name == "score":
                assert r[f"{name}_low"] < r[name] < r[f"{name}_high"]
            elif name != "gap_ratio":  # no interval without width
                assert r[f"{name}_low"] is r[f"{name}_high"] is None
        assert r["paper_regret"] is None
        assert r["seeds"] == (3 if r["agent"] == "uniform" else 1)
        own = [s for s in scores if s["setting"] == r["setting"] and s["agent"] == r["agent"]]
        means = [np.mean([s["score"] for s in own if s["seed"] == seed]) for seed in range(r["seeds"])]
        if r["agent"] == "uniform":
            optimum = document["settings"][r["setting"]]["optimum"]["value"]
            assert r["between_seeds"] == pytest.approx(statistics.stdev(means) / optimum)
            assert r["between_seeds"] > 0
            assert r["seed_shares"] == pytest.approx(np.array(means) / optimum)
            assert r["worst_seed"] == min(r["seed_shares"])
        else:
            assert r["between_seeds"] is r["seed_shares"] is r["worst_seed"] is None
        if r["agent"] == "resolve":
            assert r["ahead_of_gate"] == 0
            assert r["ahead_of_gate_low"] is None
        assert r["coincides"] is r["of_reachable"] is None
    assert list(run.glob("*.tmp")) == []


def test_headline_says_what_the_data_say(run: Path, page: str) -> None:
    sentences = " ".join(report.headline(analysis.analyse(run, 200)))
    assert "5 agents took the same exams in 3 settings (signal), 60 paired exams each" in sentences
    assert "the best agent, lp-lookahead" in sentences
    assert "ahead of the gate (resolve" in sentences
    assert "The weakest, random" in sentences
    assert "5 agents took the same exams" in html.unescape(page)


def test_same_run_same_report(run: Path, page: str, tmp_path: Path) -> None:
    again = simulate(tmp_path, sampled=("random",), seeds={"uniform": 3})
    assert report.write_report(again, resamples=400).read_text(encoding="utf-8") == page


def test_several_processes_draw_the_same_report(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"resolve": 0.97, "random": 0.5}, 20, ("signal", "latent"))
    alone = report.write_report(run, resamples=30).read_text(encoding="utf-8")
    assert report.write_report(run, resamples=30, workers=2).read_text(encoding="utf-8") == alone


def test_orders_give_the_papers_regret_and_recorded_runs_wider_intervals(tmp_path: Path) -> None:
    agents = {"resolve": 0.97, "random": 0.5}
    run = simulate(tmp_path, agents, 40, ("recorded",), ("easy_first", "hard_first"))
    comparison = analysis.analyse(run, 400)
    rows = analysis.records(comparison)
    for setting in comparison.settings:
        easy = comparison.easy_first(setting)
        assert (easy is None) == (setting.row["order"] == "easy_first")
        for r in (r for r in rows if r["setting"] == setting.id):
            if easy is None:
                assert r["paper_regret"] is None
            else:
                first = easy.entries[r["agent"]].mean("score")
                assert r["paper_regret"] == pytest.approx((first - r["score"]) / first)
    # Other orders of the same exams ask the same questions: the weights must not depend on the order.
    a, b = comparison.weights(comparison.settings[0]), comparison.weights(comparison.settings[3])
    np.testing.assert_array_equal(a, b)
    recorded = comparison.settings[0].reference_replicates["optimum"].std()
    tasks = pq.read_table(run / "settings.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([r | {"synthetic": True} for r in tasks]), run / "settings.parquet")
    assert recorded > 1.3 * analysis.analyse(run, 400).settings[0].reference_replicates["optimum"].std()


def test_latent_shows_both_ends(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"resolve": 0.97, "fixed-1": 0.5}, 20, ("latent",))
    page = report.write_report(run, resamples=100).read_text(encoding="utf-8")
    assert "against its upper end" in page
    assert "upper end of the optimum" in page
    assert "known only as a bracket" in page
    rows = json.loads((run / "summary.json").read_text())["results"]
    assert all(r["normalised_vs_upper"] == pytest.approx(r["normalised"] / 1.02) for r in rows)


def with_train_laws(run: Path, share: float, optimism: float) -> None:
    """Add the columns of the train laws' optimum to a run folder, as `roi compare` writes them for recorded sources."""
    rows = pq.read_table(run / "references.parquet").to_pylist()
    rng = np.random.default_rng(0)
    for r in rows:
        r |= {"reachable": share * r["optimum"] * (1 + 0.01 * rng.normal()), "optimism": optimism}
    pq.write_table(pa.Table.from_pylist(rows), run / "references.parquet")


def test_recorded_runs_show_what_a_user_can_reach_and_no_interval_without_width(tmp_path: Path) -> None:
    agents = {"optimum": 1.0, "fixed-1": 1.0, "resolve": 0.9, "rllib-ppo": 0.95}
    run = simulate(tmp_path, agents, 40, ("recorded",), seeds={"rllib-ppo": 5})
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    best = {(r["setting"], r["exam"]): r["optimum"] for r in pq.read_table(run / "references.parquet").to_pylist()}
    copied = [r | {"score": best[r["setting"], r["exam"]]} if r["agent"] == "fixed-1" else r for r in scores]
    pq.write_table(pa.Table.from_pylist(copied), run / "scores.parquet")
    with_train_laws(run, 0.97, 0.05)
    page = report.write_report(run, resamples=200).read_text(encoding="utf-8")
    document = json.loads((run / "summary.json").read_text())
    text = "coincides with the optimum of these questions"
    for r in document["results"]:
        reachable = document["settings"][r["setting"]]["reachable"]
        assert reachable["low"] < reachable["value"] < reachable["high"]
        assert r["of_reachable"] == pytest.approx(r["score"] / reachable["value"])
        assert r["of_reachable_low"] < r["of_reachable"] < r["of_reachable_high"]
        assert r["coincides"] == (text if r["agent"] == "fixed-1" else None)
        if r["agent"] == "fixed-1":
            assert (r["normalised"], r["normalised_low"], r["normalised_high"]) == (pytest.approx(1), None, None)
            assert r["policy_low"] is None
    assert page.count(f"<small>{text}</small>") == 3
    assert not re.search(r"<small>(\S+) to \1</small>", page)
    assert "Share of the train laws' optimum" in html.unescape(page)
    assert "rest on as many seeds" in page
    worst = next(r["worst_seed"] for r in document["results"] if r["agent"] == "rllib-ppo" and r["setting"] == 0)
    assert f"<b>{100 * worst:.1f}</b>" in page
    sentences = " ".join(report.headline(analysis.analyse(run, 200)))
    assert "of what the optimum of the train laws reaches" in sentences
    assert re.search(r"by that an estimated \d+\.\d % too high", sentences)
    # A run of an earlier version has no such columns, and its zeros of width are no intervals either.
    rows = pq.read_table(run / "references.parquet").drop_columns(["reachable", "optimism"])
    pq.write_table(rows, run / "references.parquet")
    assert f"fixed-1, {text}" in " ".join(report.headline(analysis.analyse(run, 50)))
    assert all(r["of_reachable"] is None for r in analysis.records(analysis.analyse(run, 50)))


def test_every_training_seed_is_a_point_in_the_pictures(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"optimum": 1.0, "rllib-ppo": 0.95, "resolve": 0.9}, 10, seeds={"rllib-ppo": 5})
    comparison = analysis.analyse(run, 50)
    look = figures.looks(comparison)
    for setting in comparison.settings:
        shares = analysis.seed_shares(setting, "rllib-ppo")
        assert shares is not None
        with figures.style():
            alone, together = figures.forest(setting, look).axes[0], figures.curves(comparison.settings, look).axes[1]
        assert any(np.array_equal(line.get_xdata(), shares) for line in alone.lines)
        assert any(
            np.array_equal(line.get_ydata(), shares) and set(line.get_xdata()) == {setting.budget}  # type: ignore[arg-type]
            for line in together.lines
        )


def test_shares_that_the_optimum_bounds_have_intervals_inside(tmp_path: Path) -> None:
    """An agent that is far off in one exam of few: the plain interval passes 1, which no policy can."""
    run = simulate(tmp_path, {"optimum": 1.0, "resolve": 0.999}, 8)
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    for r in scores:
        if r["agent"] == "resolve" and r["exam"] == 0:
            r["score"] *= 0.7
    pq.write_table(pa.Table.from_pylist(scores), run / "scores.parquet")
    for setting in analysis.analyse(run, 400).settings:
        entry = setting.entries["resolve"]
        plain = entry.replicates["score"] / setting.reference_replicates["optimum"]
        assert np.quantile(plain, 0.975) > 1
        assert 0.5 < setting.normalised("resolve").low < setting.normalised("resolve").high < 1
        assert setting.missed("resolve", "optimum").low > 0


def test_missing_optional_files_are_left_out(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"a <b>&": 0.9}, 10)
    for name in ("positions", "choices", "tier_calibration", "trajectory", "tasks"):
        (run / f"{name}.parquet").unlink()
    page = report.write_report(run, resamples=50).read_text(encoding="utf-8")
    assert "One exam" not in page
    assert "Calibration of tier choice" not in page
    assert "a &lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_incomplete_runs_are_named(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"random": 0.5}, 5)
    scores = pq.read_table(run / "scores.parquet")
    pq.write_table(scores.slice(1), run / "scores.parquet")
    with pytest.raises(report.RunError, match=r"'random' in setting 0 .*found 4"):
        report.summarise(run)
    (run / "scores.parquet").write_bytes(b"")
    with pytest.raises(report.RunError, match=r"scores\.parquet"):
        report.summarise(run)
    (run / "config.json").unlink()
    with pytest.raises(report.RunError, match=r"config\.json"):
        report.summarise(run)


def test_highlights_keep_the_gate_when_many_compete(tmp_path: Path) -> None:
    crowd = EFFICIENCY | {f"agent-{i}": 0.99 - 0.001 * i for i in range(14)} | {"fixed-1": 0.6, "bid-price": 0.5}
    comparison = analysis.analyse(simulate(tmp_path, crowd, 8), 20)
    assert comparison.gate == "resolve"  # not bid-price: that is the static one
    coloured, fixed = analysis.highlights(comparison)
    assert coloured[0] == "optimum"
    assert {"lp-lookahead", "resolve"} < set(coloured)
    assert len(coloured) == 7
    assert fixed == ["fixed-2", "fixed-1"]


@pytest.mark.usefixtures("undrawn")  # the page is read for its words
@pytest.mark.parametrize(
    ("agents", "gate"),
    [
        ({"resolve": 0.9, "population-bid-price": 0.95}, "population-bid-price"),
        ({"resolve": 0.96, "population-bid-price": 0.95}, "resolve"),
        ({"resolve-few": 0.99, "resolve-guarded": 0.99, "bid-price": 0.99, "dual-descent": 0.99}, None),
        ({"resolve-few(times=2)": 0.99, "resolve": 0.9}, "resolve"),
    ],
)
def test_the_gate_is_the_better_of_the_two_planners_of_the_design(
    tmp_path: Path, agents: dict[str, float], gate: str | None
) -> None:
    comparison = analysis.analyse(simulate(tmp_path, agents, 30), 20)
    assert comparison.gate == gate
    assert all((r["ahead_of_gate"] is None) == (gate is None) for r in analysis.records(comparison))
    page = report.write_report(tmp_path, resamples=20).read_text(encoding="utf-8")
    assert ("Ahead of " in page) == (gate is not None)


def test_exams_with_the_same_questions_have_no_intervals_and_say_so(tmp_path: Path) -> None:
    run = simulate(
        tmp_path, {"resolve": 0.9, "lp-lookahead": 0.95, "uniform": 0.8}, 20, ("recorded",), seeds={"uniform": 3}
    )
    tasks = pq.read_table(run / "tasks.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([r | {"question": r["position"]} for r in tasks]), run / "tasks.parquet")
    page = report.write_report(run, resamples=50).read_text(encoding="utf-8")
    reason = "its 20 exams of 10 tasks share nearly all of their 10 questions"
    assert page.count(f"<b>No intervals here:</b> {reason}") == 3
    assert f"No interval for recorded N=10 t=0.3 random: {reason}" in page
    text = re.sub(r"<svg.*?</svg>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert "distinguishable" not in text
    assert "ahead of the gate" not in text
    assert "nan" not in text.lower().split()
    assert not re.search(r"<small>[^<]* to ", text)
    document = json.loads((run / "summary.json").read_text())
    for row in document["results"]:
        assert row["no_interval"].startswith(reason)
        assert row["normalised"] is not None
        assert all(value is None for name, value in row.items() if name.endswith(("_low", "_high")))
    assert all(s["no_interval"] and s["optimum"]["low"] is None for s in document["settings"])


def test_a_budget_at_which_nothing_can_be_won_is_reported(tmp_path: Path) -> None:
    run = simulate(tmp_path, {"resolve": 0.9, "optimum": 1.0, "random": 0.5}, 10)
    for name, columns in (("references", ("oracle", "informed", "optimum", "optimum_upper")), ("scores", ("score",))):
        rows = pq.read_table(run / f"{name}.parquet").to_pylist()
        rows = [r | dict.fromkeys(columns, 0.0) if r["setting"] == 0 else r for r in rows]
        pq.write_table(pa.Table.from_pylist(rows), run / f"{name}.parquet")
    page = report.write_report(run, resamples=30).read_text(encoding="utf-8")
    assert page.count("<table>") == 3
    rows = json.loads((run / "summary.json").read_text())["results"]
    assert all((r["normalised"] is None) == (r["setting"] == 0) for r in rows)


def path_points(data: str) -> list[tuple[str, tuple[float, ...]]]:
    """Commands of an SVG path with their coordinates, implied repetitions written out."""
    size = {"M": 2, "L": 2, "Q": 4, "C": 6, "Z": 0}
    result = []
    for command, numbers in re.findall(r"([MLQCZz])([^MLQCZz]*)", data):
        places, n = [float(x) for x in numbers.split()], size[command.upper()]
        for i in range(0, len(places), n) if n else [0]:
            result.append((command if i == 0 else "L" if command == "M" else command, tuple(places[i : i + n])))
    return result


def test_pictures_in_fewer_bytes_are_the_same_pictures() -> None:
    """Same elements, same places to a hundredth of a point, same colours as matplotlib's own SVG."""
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1, 2, 2], [0, 1, 0.5, 2], marker="o", color="#0072B2")
    axes.scatter([0.5], [1.5], marker="D")
    axes.fill_between([0, 1, 2], [0, 0.5, 0.2], [1, 1.5, 1.2], alpha=0.2)
    axes.imshow(np.arange(4.0).reshape(2, 2), extent=(0, 1, 1, 2), interpolation="none", aspect="auto")
    axes.set_title("Tokens, 95 %")
    with figures.style():
        raw = io.StringIO()
        figure.savefig(raw, format="svg")
        glyphs = figures.Glyphs()
        short = figures.compact(raw.getvalue(), "p", glyphs)

    def resolved(svg: str, letters: str) -> list[tuple[str, Any]]:
        """Leaves in drawing order: letters by outline, shapes by their points, with the styles that apply to them."""
        space = "{http://www.w3.org/2000/svg}"
        link = "{http://www.w3.org/1999/xlink}href"
        roots = [ElementTree.fromstring(text) for text in (svg, letters) if text]
        named = {e.get("id"): e for root in roots for e in root.iter() if e.get("id")}
        leaves: list[tuple[str, Any]] = []

        def walk(element: ElementTree.Element, styles: str) -> None:
            tag = element.tag.removeprefix(space)
            if tag in ("defs", "clipPath", "metadata", "style"):
                return
            styles += ";".join(sorted(re.split(r"\s*;\s*", (element.get("style") or "").replace(": ", ":"))))
            if tag == "path":
                leaves.append((styles, path_points(element.get("d", ""))))
            elif tag == "use":
                target = named[(element.get("href") or element.get(link) or "")[1:]]
                x = element.get("x") or "".join(re.findall(r"translate\((\S+) 0\)", element.get("transform", "")))
                place = [("x", (float(x or 0), float(element.get("y", 0))))]
                leaves.append((styles, place + path_points(target.get("d", ""))))
            elif tag == "image":
                leaves.append((styles, [("image", ())]))
            for child in element:
                walk(child, styles)

        walk(roots[0], "")
        return leaves

    before, after = (
        resolved(raw.getvalue(), ""),
        resolved(short, glyphs.definitions().replace("<svg", f'<svg xmlns="{SVG}"', 1)),
    )
    assert len(before) == len(after) > 40
    for (style_a, a), (style_b, b) in zip(before, after, strict=True):
        assert style_a == style_b
        assert [command for command, _ in a] == [command for command, _ in b]
        letter = a[0][0] == "x"
        for (_, x), (_, y) in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=0.5 if letter else 0.0051)
    assert len(short) < 0.5 * len(raw.getvalue())


def test_labels_are_spread() -> None:
    places = figures.spread([1.0, 1.0, 0.99, 0.2], 0.1, 0, 1)
    assert np.diff(np.sort(places)).min() == pytest.approx(0.1)
    assert min(places) >= 0
    assert max(places) <= 1 + 1e-12
    assert places[3] == pytest.approx(0.2)
    assert len(figures.spread([0.5] * 30, 0.1, 0, 1)) == 30
