from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from rich.console import Console

from repertory.compare.report import legend, table, write_report
from repertory.compare.statistics import summarise
from repertory.compare.wording import Name, Scale, finding

CARD = {
    "slug": "saf",
    "name": "SAF",
    "title": "Sharpness-aware training",
    "authors": "Du et al.",
    "year": 2022,
    "link": "https://example.org/saf",
    "one_line": "Flat minima.",
}


def compared(
    effects: Mapping[str, float | None],
    *,
    seeds: int = 4,
    metric: str = "accuracy",
    higher_is_better: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Make a comparison of methods with the given effects; None is a method that always diverges."""
    generator = np.random.default_rng(0)
    shared, results = generator.normal(0, 0.01, seeds), []
    for label, effect in {"baseline": 0.0, **effects}.items():
        for seed in range(seeds):
            noise = 0.0 if effect == 0 else 0.002 * generator.normal()
            value = 0.8 + shared[seed] + (effect or 0.0) + noise
            curve = [{"passes": 100.0 * e, "validation": {metric: value - 0.2 / e}} for e in range(1, 6)]
            done = effect is not None
            test = {metric: value, "nll": 0.5}
            results.append({
                "label": label, "method": label, "seed": seed, "status": "finished" if done else "diverged",
                "error": None if done else "the loss was nan", "curve": curve if done else curve[:2],
                "metrics": {"test": test, "validation": {metric: value}} if done else {},
                "cost": {"steps": 50, "passes": 500.0, "seconds": 2.0 + 0.1 * seed, "peak_bytes": 1e8},
            })  # fmt: skip
    rows = summarise(results, metric=metric, higher_is_better=higher_is_better)
    comparison = {
        "title": "digits", "command": "repertory compare saf --data digits > out.txt",
        "data": {"name": "digits", "task": "classification", "examples": 1797, "input_shape": [1, 8, 8],
                 "notes": ["as published"], "splits": {"train": 1000, "test": 797}},
        "settings": {"budget": "compute", "model": "mlp", "seeds": list(range(seeds)), "device": None},
        "metric": metric, "higher_is_better": higher_is_better, "rows": json.loads(json.dumps(rows)),
        "results": results, "cards": [CARD], "versions": {"repertory": "0.1.0"},
        "created": "2025-01-02T03:04:05+00:00", "incomplete": False,
    }  # fmt: skip
    return {**comparison, **changes}


def page(comparison: dict[str, Any], folder: Path) -> str:
    write_report(folder / "report.html", comparison)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_condensed_sets_are_shown(tmp_path: Path) -> None:
    classes = [{"class": "<cat>", "pictures": [Markup("<svg>one</svg>"), Markup("<svg>two</svg>")]}]
    made = [{"label": "saf", "seed": 3, "shown": 10, "classes": classes}]
    write_report(tmp_path / "report.html", compared({"saf": 0.02}), (), made)
    shown = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = shown[shown.index('<section id="condensed">') :]
    assert "&lt;cat&gt;" in section
    assert "<td><svg>one</svg></td><td><svg>two</svg></td>" in section
    assert "At seed 3, up to 10 examples" in section
    assert 'id="condensed"' not in page(compared({"saf": 0.02}), tmp_path)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(compared({"saf": 0.02, "esam": None}), tmp_path_factory.mktemp("report"))


def printed(comparison: dict[str, Any], width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.seen


def test_nothing_is_loaded_and_only_references_lead_to_the_network(html: str) -> None:
    found = tags(html)
    links = [attrs["href"] or "" for _, attrs in found if "href" in attrs]
    assert {link for link in links if not link.startswith("data:")} == {"https://example.org/saf"}
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in found}
    assert all(str(attrs["xlink:href"]).startswith("#") for _, attrs in found if "xlink:href" in attrs)
    assert not any("src" in attrs for _, attrs in found)


def test_the_same_comparison_gives_the_same_bytes(html: str, tmp_path: Path) -> None:
    assert page(compared({"saf": 0.02, "esam": None}), tmp_path) == html


def test_markup_in_names_and_metrics_is_shown_not_run(tmp_path: Path) -> None:
    metric = 'accuracy"><script>'
    html = page(compared({"<script>x</script> & $a_1$": 0.0}, metric=metric, title="<b>t</b>"), tmp_path)
    assert "<script" not in html
    assert "<b>t</b>" not in html
    shown = "&lt;script&gt;x&lt;/script&gt; &amp; $a_1$"
    assert f"{shown}</span>" in html
    assert html.count(f"{shown}</text>") == 3, "once a plot, and not as a formula"


def test_a_link_that_is_no_web_address_is_no_link(tmp_path: Path) -> None:
    html = page(compared({"saf": 0.02}, cards=[{**CARD, "link": "javascript:alert(1)"}]), tmp_path)
    assert "javascript:alert(1)" in html
    assert 'href="javascript' not in html


def test_every_row_and_every_run_is_there(tmp_path: Path) -> None:
    effects = {f"method-{at}:rho=0.{at}": 0.01 * at for at in range(1, 13)}
    html = page(compared(effects, seeds=3), tmp_path)
    names = re.findall(r'class="name">([^<]+)<', html)
    for label in effects:
        assert names.count(label.split(":")[0]) == 2, "the table and the other metrics"
        assert names.count(label) == 3, "one line a seed"


def test_command_versions_and_data_are_told(html: str) -> None:
    for text in ("repertory compare saf --data digits &gt; out.txt", "0.1.0", "1 × 8 × 8", "as published",
                 "train 1000, test 797", "2025-01-02 03:04 UTC", "Sharpness-aware training"):  # fmt: skip
        assert text in html


def test_there_are_three_plots_that_can_be_saved(html: str) -> None:
    saved = re.findall(r'download="(\w+)\.svg" href="data:image/svg\+xml;base64,([^"]+)"', html)
    assert [name for name, _ in saved] == ["forest", "curves", "cost"]
    for _, data in saved:
        svg = ElementTree.fromstring(base64.b64decode(data))
        assert "SAF" in "".join(svg.itertext())
        assert svg.get("viewBox")
        assert svg.get("width") is None


def test_ids_are_unique_in_the_page(html: str) -> None:
    ids = [attrs["id"] for _, attrs in tags(html) if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_an_incomplete_comparison_says_so(html: str, tmp_path: Path) -> None:
    assert "Incomplete." in page(compared({"saf": 0.02}, incomplete=True), tmp_path)
    assert "Incomplete." not in html


@pytest.mark.parametrize(
    "comparison",
    [
        compared({"saf": None}),
        compared({"saf": 0.02}, seeds=1),
        compared({"saf": 0.0}),
        compared({}),
        compared({"saf": 0.02}, cards=[], versions={}, settings={}, data={}),
        compared({"saf": 0.02}, rows=[], results=[]),
        compared({"日本語の方法": 0.02, "saf:" + "o" * 300 + "=1": -0.7, "a": 0.01, "b": 0.01, "c": None}),
    ],
    ids=["diverged", "one seed", "no difference", "baseline alone", "little known", "empty", "extreme"],
)
def test_odd_comparisons_make_a_report_and_a_table(comparison: dict[str, Any], tmp_path: Path) -> None:
    assert page(comparison, tmp_path).rstrip().endswith("</html>")
    assert max(map(len, printed(comparison))) <= 100
    assert legend(comparison)


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (compared({"esam": 0.0, "lion": 0.0}), "For esam and lion nothing changed on 4 seeds."),
        (compared({"saf": 0.02}, seeds=1), "For SAF one seed can tell nothing (--seeds 3 is a start)."),
        (compared({"saf": None}), "For SAF every run diverged."),
        (compared({}), "Only the baseline was run, so there is nothing to compare."),
        (compared({"saf": 0.02}, rows=[]), "Nothing can be said: no run of the baseline finished."),
    ],
)
def test_finding_says_what_cannot_be_told(comparison: dict[str, Any], sentence: str) -> None:
    assert finding(comparison) == sentence


def test_finding_gives_the_effect_in_points_with_interval_and_cost() -> None:
    pattern = r"SAF helps: \+\d\.\d points \(95 % interval \d\.\d to \d\.\d\) at 1\.00× the passes\."
    assert re.fullmatch(pattern, finding(compared({"saf": 0.02})))


def test_lower_is_better_turns_the_verdict_and_keeps_the_unit() -> None:
    comparison = compared({"saf": -0.05}, metric="rmse", higher_is_better=False)
    assert re.match(r"SAF helps: −0\.0\d+ rmse \(95 % interval −", finding(comparison))


def test_finding_stays_short_with_many_methods() -> None:
    comparison = compared({f"m{at}": 0.02 + 0.01 * at for at in range(9)})
    assert "so do 6 more methods" in finding(comparison)


def test_table_holds_method_difference_verdict_and_cost_in_100_columns() -> None:
    lines = printed(compared({"saf": 0.02, "esam:rho=0.1,beta=0.5+lion": -0.03, "dash": None}))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 100
    assert re.search(r"SAF .*\+\d\.\d \[\+\d\.\d, \+\d\.\d\] +▲ helps +1\.00×", text)
    assert re.search(r"esam \+ lion .* ▼ hurts", text)
    assert "rho=0.1, beta=0.5" in text
    assert "4 of 4 diverged" in text


def test_square_brackets_in_a_label_are_no_markup_in_the_terminal() -> None:
    assert "[bold]x[/bold]" in "\n".join(printed(compared({"[bold]x[/bold]": 0.02})))


def test_legend_explains_units_and_direction() -> None:
    comparison = compared({"saf": -0.05}, metric="rmse", higher_is_better=False)
    assert "4 seeds; test rmse: mean ± sd, lower is better; difference from the baseline in rmse" in legend(comparison)
    assert "in points" in legend(compared({"saf": 0.02}))


def test_a_plus_inside_a_number_joins_no_methods() -> None:
    assert str(Name.of("saf:rate=1e+3+lion", [CARD])) == "SAF + lion (rate=1e+3)"


@pytest.mark.parametrize(
    ("metric", "mean", "sd", "written"),
    [
        ("accuracy", 0.97123, 0.0052, "97.1 ± 0.5"),
        ("accuracy", 0.97123, 0.00052, "97.12 ± 0.05"),
        ("rmse", 0.43219, 0.0123, "0.432 ± 0.012"),
        ("rmse", 43219.4, 312.0, "43219 ± 312"),
        ("mse", 1.234e-9, 2.0e-11, "1.23e−09 ± 2e−11"),
    ],
)
def test_decimals_follow_the_spread(metric: str, mean: float, sd: float, written: str) -> None:
    assert Scale.of(metric, [{"mean": mean, "sd": sd}]).spread(mean, sd) == written


def test_a_difference_that_rounds_to_nothing_has_no_sign() -> None:
    scale = Scale("accuracy", percent=True, decimals=1)
    assert (scale.signed(1e-6), scale.signed(-1e-6)) == ("0.0", "0.0")


def test_the_report_says_what_was_done_to_the_data(tmp_path: Path) -> None:
    comparison = compared({"saf": 0.02})
    for spec, shown in (("./iris?imbalance=5", "iris?imbalance=5"), ("iris", "iris")):
        comparison["data"] = {**comparison["data"], "name": "iris", "spec": spec}
        write_report(tmp_path / "report.html", comparison)
        assert f">{shown}<" in (tmp_path / "report.html").read_text().replace("\n", "").replace(" ", "")
