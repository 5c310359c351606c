"""scripts/report.py: what stands in the page is what the run has written and what its network says, and a browser
shows it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import cspnet
from cspnet.cli.report_job import ReportJob, run_report_job
from cspnet.cli.report_records import find_best
from cspnet.cli.train import main as train
from cspnet.cli.validate import main as validate
from cspnet.recipe.load import load_recipe
from cspnet.reporting import page
from cspnet.reporting.plots import draw_panels
from cspnet.reporting.run_page import ClassRow, RunFacts, Seen, ShownPicture, render_run
from tests.conftest import draw_tree

Run = Callable[..., subprocess.CompletedProcess[str]]

ODD = "a<b>&\"'c"
"""A class that HTML would read."""
VOID = ("meta", "img", "br", "link", "input", "hr")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """Reads a page: its tables by their captions, its pictures, its headings, and all text; bad nesting is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.caption = self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.titles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, key, value) for key, value in attributes]
        if name == "img":
            self.images.append(dict(attributes))
        if name == "table":
            self.rows, self.caption = [], ""
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
            assert name == "td" or dict(attributes)["scope"] in ("row", "col")
        if name in ("h1", "h2"):
            self.titles.append("")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name
        if name == "table":
            assert self.caption not in self.tables
            self.tables[self.caption] = self.rows

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        elif self.open[-1:] in (["h1"], ["h2"]):
            self.titles[-1] += data

    def pairs(self, caption: str) -> dict[str, str]:
        """A table of two columns, without its head."""
        return dict(map(tuple, self.tables[caption][1:]))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes, one with an odd name; a validation picture whose name is no text, and one that is no picture."""
    root = draw_tree(tmp_path_factory.mktemp("drawn"), classes=4, train=48, val=14)
    for split in ("train", "val"):
        (root / split / "class_1").rename(root / split / ODD)
    odd = os.fsencode(root / "val" / ODD)
    os.rename(os.path.join(odd, b"0001.jpg"), os.path.join(odd, b"caf\xe9.jpg"))
    (root / "val" / "class_0" / "broken.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a moving average. Read only."""
    folder = tmp_path_factory.mktemp("finished") / 'run <1> & "more"'
    words = ["--data-path", pictures, "--output-dir", folder, "--model", "cspdarknet_tiny", "--img-size", 32]
    words += ["--batch-size", 8, "--epochs", 2, "--workers", 0, "--device", "cpu", "--precision", "fp32", "--lr", 0.02]
    words += [
        "--print-freq",
        2,
        "--ema.decay",
        0.5,
        "--data.cache_dir",
        folder.parent / "c",
        "--log.tensorboard",
        "false",
    ]
    assert train(list(map(str, words))) == 0
    return folder


@pytest.fixture(scope="module")
def records(finished: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """The report of the run."""
    out = tmp_path_factory.mktemp("made") / "r.html"
    assert run_report_job(ReportJob(finished, out=out, overrides={"data.workers": 0, "train.device": "cpu"})) == 0
    text = out.read_text()
    return text, Page(text)


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def report(fork_script: Run) -> Run:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return fork_script("scripts/report.py", *words, "--workers", 0, "--device", "cpu")

    return run


# What stands in it


def test_the_head(made: tuple[str, Page], finished: Path, pictures: Path, records: list[dict[str, Any]]) -> None:
    """The best epoch is that of the moving average, which decides."""
    _, read = made
    ends = [record for record in records if "val/acc1" in record]
    best = max(ends, key=lambda record: record["val_ema/acc1"])  # the first of equals
    facts = read.pairs("The run")
    assert read.titles[0] == finished.name
    said = f"Acc@1 {best['val_ema/acc1']:.3f} %, moving average, epoch {best['epoch'] + 1}, step {best['step']}, loss "
    assert facts["best result"] == said + f"{best['val_ema/loss']:.4f}"
    params = sum(p.numel() for p in cspnet.create_model("cspdarknet_tiny", 4).parameters())
    assert facts["model"] == f"cspdarknet_tiny, {params:,} parameters"
    assert facts["data"] == f"{pictures}, 48 pictures to train, 4 classes, 15 to validate"
    assert facts["validated at"].startswith("32 px, crop ratio 0.875, bilinear, mean 0.485 0.456 0.406, std 0.229")
    assert facts["length"] == "12 steps and 2 epochs done, of 2 epochs"
    assert facts["a step"] == "8 pictures, sgd, lr 0.02, step"
    assert "python3 validate.py \\\n  --checkpoint '" in read.text
    environment = read.pairs("As the run has recorded it")
    saved = torch.load(finished / "checkpoints" / "best.pt", weights_only=True)
    assert environment["torch"] == torch.__version__
    assert (environment["processes"], environment["device"]) == ("1", "cpu")
    assert environment["threads"] == str(saved["computed_on"]["threads"])


def test_the_epochs(made: tuple[str, Page], records: list[dict[str, Any]]) -> None:
    header, *rows = made[1].tables["The end of each epoch; accuracies in %"]
    ends = [record for record in records if "val/acc1" in record]
    expected = [
        [str(r["epoch"] + 1), str(r["step"]), f"{r['train/epoch_loss']:.4f}", f"{r['train/epoch_acc1']:.2f}"]
        + [f"{r[f'{kind}/{key}']:.{digits}f}" for kind in ("val", "val_ema") for key, digits in FIGURES]
        for r in ends
    ]
    assert rows == expected
    assert len(header) == len(expected[0])


FIGURES = (("loss", 4), ("acc1", 3), ("acc5", 3))


def test_classes_and_confusions_are_those_of_validate(
    made: tuple[str, Page], finished: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ["--checkpoint", finished / "checkpoints" / "best.pt", "--data-path", pictures, "--workers", 0]
    words += ["--per-class", tmp_path / "classes.csv", "--confusion", tmp_path / "confusion.csv", "--device", "cpu"]
    assert validate(list(map(str, words))) == 0
    with (tmp_path / "classes.csv").open(newline="") as file:
        classes = sorted(csv.DictReader(file), key=lambda row: float(row["acc1"]))
    expected = [
        [
            row["class"],
            f"{float(row['acc1']):.1f} %",
            "",
            f"{row['mostly_taken_for']} ({row['times']})" if row["mostly_taken_for"] else "–",
            row["correct1"],
            row["pictures"],
            row["correct5"],
        ]
        for row in classes
    ]
    assert made[1].tables["All classes, the worst first"][1:] == expected
    assert ODD in [row[0] for row in expected]
    with (tmp_path / "confusion.csv").open(newline="") as file:
        (_, *names), *rows = csv.reader(file)
    pairs = {(row[0], name): int(count) for row in rows for name, count in zip(names, row[1:], strict=True)}
    totals = {row["class"]: int(row["pictures"]) for row in classes}
    wrong = {(a, b): [str(n), f"{100 * n / totals[a]:.1f} %"] for (a, b), n in pairs.items() if a != b and n}
    shown = made[1].tables["Which classes are mixed up"][1:]
    assert {(a, b): rest for a, b, *rest in shown} == wrong
    assert [int(row[2]) for row in shown] == sorted((int(row[2]) for row in shown), reverse=True)


def answer_by_hand(finished: Path, pictures: Path) -> dict[str, tuple[str, str, float]]:
    """{path: (class, first answer, its probability in %)} by torchvision's transform and the network as it is."""
    content = torch.load(finished / "checkpoints" / "best.pt", weights_only=True)
    model = cspnet.create_model("cspdarknet_tiny", 4).eval()
    model.load_state_dict(content["state_dict_ema"])
    size = int(32 / content["eval_cfg"]["crop_ratio"])
    transform = v2.Compose(
        [
            v2.Resize(size, interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(content["eval_cfg"]["mean"], content["eval_cfg"]["std"]),
        ]
    )
    found = {}
    for file in sorted((pictures / "val").rglob("*.jpg")):
        if file.name != "broken.jpg":
            with torch.no_grad():
                sure, answer = model(transform(Image.open(file).convert("RGB"))[None])[0].softmax(0).max(0)
            found[str(file)] = (file.parent.name, content["classes"][int(answer)], 100 * float(sure))
    return found


def test_the_pictures(made: tuple[str, Page], finished: Path, pictures: Path) -> None:
    """All that can be read are in it, as there are so few: wrong ones, then right ones, the surest first."""
    text, read = made
    expected = answer_by_hand(finished, pictures)
    assert len(read.images) == len(expected) == 14
    captions = re.findall(r"<figcaption>(?!loss|Acc|learning|images|waiting)(.*?)</figcaption>", text, re.DOTALL)
    shown = [html.unescape(re.sub(r"<[^>]*>", "", caption)).split() for caption in captions]
    order = []
    for image, words in zip(read.images, shown, strict=True):
        path, name, answer = re.fullmatch(r"(.*): (.*), taken for (.*)", image["alt"] or "").groups()  # type: ignore[union-attr]
        real = path.replace("\\udce9", "\udce9")
        assert (name, answer) == expected[real][:2]
        sure = float(words[-2])
        assert sure == pytest.approx(expected[real][2], abs=0.051)
        assert words[:-2] == ([answer] if name == answer else [name, "→", answer])
        order.append((name == answer, -sure))
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as small, Image.open(real) as large:
            assert small.size == large.size
            assert not small.getexif()
    assert order == sorted(order)
    assert any("caf\\udce9.jpg" in (image["alt"] or "") for image in read.images)


def test_what_was_met(made: tuple[str, Page], finished: Path) -> None:
    (entry,) = map(json.loads, (finished / "bad_images.jsonl").read_text().splitlines())
    assert made[1].tables["1 of 1 pictures that could not be read"][1:] == [[entry["path"], entry["reason"]]]
    assert "1 validation pictures could not be read, and counted as wrong" in made[1].text


def test_the_recipe_and_its_sources(made: tuple[str, Page], finished: Path, pictures: Path) -> None:
    rows = made[1].tables["Settings that were made"][1:]
    given = {row[0]: row[1:] for row in rows}
    assert given["optim.lr"] == ["0.02", "command line"]
    assert given["data.root"] == [str(pictures), "command line"]
    assert all(row[2] == "command line" for row in rows)
    others = made[1].tables["Defaults"][1:]
    assert all(row[2] == "default" for row in others)
    saved = load_recipe(finished / "recipe.yaml").sources
    assert sorted(row[0] for row in rows + others) == sorted(saved)


def test_speed_is_what_the_run_has_said(made: tuple[str, Page], finished: Path, records: list[dict[str, Any]]) -> None:
    kept = json.loads((finished / "speed.json").read_text())
    assert (kept["step"], kept["steps"]) == (12, 9)
    assert f'class="verdict">{kept["verdict"]}</p>' in made[0]
    rows = made[1].pairs("What was measured")
    assert rows["images/s"] == f"{kept['train/images_per_s']:,.0f}"
    peak = max(record.get("train/peak_memory_bytes", 0) for record in records)
    assert rows["peak memory"] == f"{peak / 2**30:.2f} GiB"


def test_it_needs_nothing_else(made: tuple[str, Page]) -> None:
    text, read = made
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not {name for name, _, _ in read.attributes} & {"script", "link", "iframe", "object", "embed", "base"}
    links = [value for _, key, value in read.attributes if key in ("src", "href", "xlink:href")]
    assert all(value and value.startswith(("data:", "#")) for value in links)
    ids = [value for _, key, value in read.attributes if key == "id"]
    assert len(set(ids)) == len(ids) > 50
    assert {link.removeprefix("#") for link in links if link and link[0] == "#"} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert ODD not in text
    assert html.escape(ODD) in text
    assert len(text) < 400_000


def test_the_curves_are_those_of_the_records(made: tuple[str, Page], records: list[dict[str, Any]]) -> None:
    """A line has as many points as there are records; without a key there is no line."""
    drawn = draw_panels(records)
    assert all(svg in made[0] for svg in drawn.values())
    assert drawn["learning rate"].count("#2f7ed8") == 1
    assert "#0f9d77" in drawn["loss"]
    path = re.search(r'<path d="([^"]*)"[^>]*#2f7ed8', drawn["learning rate"])
    steps = sum("train/lr" in record for record in records)
    assert path is not None
    assert 2 <= len(re.findall("[ML]", path[1])) <= steps  # points on a straight line may be joined
    bare = [{key: value for key, value in record.items() if "val_ema" not in key} for record in records]
    assert "#0f9d77" not in draw_panels(bare)["loss"]
    assert list(draw_panels([{"step": 1, "epoch": 0, "train/lr": 0.1}])) == ["learning rate"]


def test_long_runs_are_thinned_out() -> None:
    records = [{"step": i, "epoch": 0, "train/loss": (i * 7919) % 1000 / 1000} for i in range(20_000)]
    assert len(draw_panels(records)["loss"]) < 60_000


# Colours and screens


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb. Source: WCAG 2.1."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_are_far_enough_apart(made: tuple[str, Page]) -> None:
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", rule)) for rule in re.findall(r":root \{[^}]*\}", made[0])]
    light, dark = (theme for theme in themes if theme)
    for theme in (light, dark):
        for name, least in (("ink", 7), ("faint", 4.5), ("link", 4.5), ("good", 4.5), ("bad", 4.5), ("bar", 3)):
            for behind in ("paper", "box"):
                high, low = sorted((luminance(theme[name]), luminance(theme[behind])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


PROBE = """<!DOCTYPE html><body><iframe width="360" height="740" srcdoc="{page}"></iframe><pre id="said"></pre><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, seen = page.defaultView;
  page.querySelectorAll("details").forEach((one) => one.open = true);
  const images = [...page.images], wide = [...page.querySelectorAll(".wide")];
  document.getElementById("said").textContent = JSON.stringify({{
    inner: seen.innerWidth, scroll: page.documentElement.scrollWidth, images: images.length,
    broken: images.filter((one) => !one.complete || one.naturalWidth === 0).length,
    drawn: [...page.querySelectorAll("figure svg")].map((one) => one.getBoundingClientRect().width),
    boxes: wide.filter((one) => one.getBoundingClientRect().right > seen.innerWidth).length,
    scrolling: wide.filter((one) => one.scrollWidth > one.clientWidth).length }});
}});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_phone_shows_it(made: tuple[str, Page], tmp_path: Path) -> None:
    """360 px wide, everything folded out: nothing sticks out of the page, and every picture is there."""
    (tmp_path / "probe.html").write_text(PROBE.format(page=html.escape(made[0])))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    address = (tmp_path / "probe.html").as_uri()
    done = subprocess.run([str(BROWSER), *words, address], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert match, done.stderr
    said = json.loads(html.unescape(match[1]))
    assert said["inner"] == 360
    assert said["scroll"] <= said["inner"]
    assert (said["images"], said["broken"]) == (14, 0)
    assert len(said["drawn"]) == 6
    assert all(300 <= width <= 360 for width in said["drawn"])
    assert said["boxes"] == 0
    assert said["scrolling"] > 0, "no table is wider than a phone: nothing was tried"


# Other runs


def make_facts(**more: Any) -> RunFacts:
    nothing: dict[str, Any] = {"best": None, "best_kind": "val", "facts": [], "command": [], "seen": None}
    nothing |= {"unseen": "gone", "verdict": "", "speed": [], "environment": [], "bad_images": [], "events": []}
    return RunFacts(**{"name": "n", "folder": "/f", "records": [], "recipe": [], **nothing, **more})


def test_many_classes_are_folded() -> None:
    rows = [ClassRow(f"c{i}", 1000, (i * 389) % 1000, 1000, "x", 1) for i in range(1000)]
    read = Page(render_run(make_facts(seen=Seen("", rows, [], 0, [], []))))
    worst, best = (read.tables[f"The 20 {kind} of 1,000 classes"][1:] for kind in ("worst", "best"))
    assert [row[4] for row in worst] == [str(i) for i in range(20)]
    assert [row[4] for row in best] == [str(i) for i in range(980, 1000)]
    middle = read.tables["The other classes, the worst first"][1:]
    assert [row[4] for row in middle] == [str(i) for i in range(20, 980)]


def test_a_picture_that_is_gone() -> None:
    lost = ShownPicture(None, 0, "/a.jpg", "cat", "dog", 0.5)
    text = render_run(make_facts(seen=Seen("", [], [], 1, [lost], [])))
    assert "/a.jpg: cat, taken for dog</span>" in text
    assert not Page(text).images


def test_escaping() -> None:
    assert page.escape('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert page.escape(os.fsdecode(b"\xff\n\x1b\xe2\x80\xae")) == "\\udcff\\n\\x1b\\u202e"
    assert page.tag("p", page.tag("b", "<"), title='"') == '<p title="&quot;"><b>&lt;</b></p>'


def test_the_best_record() -> None:
    records = [{"step": i, "val/acc1": value} for i, value in enumerate((10.0, None, 30.0, 30.0, 20.0))]
    assert find_best(records) == (records[2], "val")
    averaged = [{"step": 0, "val/acc1": 90.0, "val_ema/acc1": 1.0}, {"step": 1, "val/acc1": 3.0, "val_ema/acc1": 2.0}]
    assert find_best(averaged) == (averaged[1], "val_ema")
    assert find_best([{"step": 0, "train/loss": 1.0}]) == (None, "val")


def test_values_that_are_none(run_copy: Path, report: Run) -> None:
    """What is not a number of a run is a dash in the page, and none of it comes as markup."""
    odd = {"train/epoch_loss": "<b>", "train/epoch_acc1": True, "val/loss": float("nan"), "val/acc1": 10**400}
    odd |= {"val/acc5": [1], "train/skipped": {}, "train/loss": None, "train/images_per_s": 0}
    (run_copy / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, **odd}) + "\n")
    (run_copy / "speed.json").write_text('{"verdict": "<i>", "steps": "<b>", "train/mfu": 1e999}')
    done = report(run_copy, "--without-pictures")
    assert (done.returncode, done.stderr) == (0, "")
    read = Page((run_copy / "report.html").read_text())
    assert read.tables["The end of each epoch; accuracies in %"][1] == ["1", "1", *["–"] * 5]
    assert read.pairs("What was measured")["images/s"] == "–"
    assert "<i>" in read.text


def test_an_older_run_that_goes_on(run_copy: Path, report: Run) -> None:
    """No sources, no verdict, no checkpoint, no epoch: what is not recorded is called so."""
    for name in ("sources.json", "speed.json"):
        (run_copy / name).unlink()
    shutil.rmtree(run_copy / "checkpoints")
    lines = [{"step": 1, "epoch": 0, "train/loss": 1.0, "train/images_per_s": 100.0, "train/data_wait_ratio": 0.5}]
    lines.append({**lines[0], "step": 4, "train/images_per_s": 50.0, "train/data_wait_ratio": 0.1})
    (run_copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "ep')
    (run_copy / "metrics.jsonl.1").write_text("")
    done = report(run_copy)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert "no checkpoint that can be read: the page is without classes and pictures" in done.stderr
    read = Page((run_copy / "report.html").read_text())
    # 1 step at 100 and 3 at 50 pictures a second: (1/100 * 0.5 + 3/50 * 0.1) / (1/100 + 3/50) = 16 %, and 4/0.07
    assert "input-bound: 15.7% of a step is waiting for data, by the records" in read.text
    speed = read.pairs("What was measured")
    assert (speed["images/s"], speed["peak memory"]) == ("57", "not recorded")
    assert {row[2] for row in read.tables["Settings that were made"][1:]} == {"not recorded"}
    assert set(read.pairs("As the run has recorded it").values()) == {"not recorded"}
    assert read.pairs("The run")["time"] == "not recorded"
    assert "Not validated yet" in read.text
    assert "the run began anew: metrics.jsonl.1" in read.text


def test_pictures_that_are_gone_are_no_reason_to_fail(run_copy: Path, report: Run, tmp_path: Path) -> None:
    recipe = run_copy / "recipe.yaml"
    recipe.write_text(re.sub(r"  root: .*", f"  root: {tmp_path / 'gone'}", recipe.read_text()))
    for name in ("best.pt", "last.pt"):
        file = run_copy / "checkpoints" / name
        content = torch.load(file, weights_only=True)
        content["recipe"]["data.root"] = str(tmp_path / "gone")
        file.unlink()
        file.with_name(f"{name}.sha256").unlink()
        torch.save(content, file)
    done = report(run_copy)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path / 'gone'}: no such folder" in line
    assert "--data-path names another place" in line
    read = Page((run_copy / "report.html").read_text())
    assert "The validation pictures could not be read" in read.text
    assert "Curves" in read.titles
    assert not read.images


def test_the_pictures_elsewhere(run_copy: Path, pictures: Path, report: Run, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "moved")
    done = report(run_copy, "--data-path", tmp_path / "moved", "--checkpoint", run_copy / "checkpoints" / "last.pt")
    assert done.returncode == 0, done.stderr
    read = Page((run_copy / "report.html").read_text())
    assert all(str(tmp_path / "moved") in (image["alt"] or "") for image in read.images)
    assert "last.pt, moving average" in read.text


def test_writing_over_it(run_copy: Path, report: Run, tmp_path: Path) -> None:
    """Its own report as often as one likes; another run's, or anything else, only when told to."""
    out = tmp_path / "r.html"
    for place in ([], ["--out", out]):
        for _ in range(2):
            assert report(run_copy, "--without-pictures", *place).returncode == 0
    other = shutil.copytree(run_copy, tmp_path / "other")
    assert report(other, "--without-pictures").returncode == 0, "copied with its report"
    done = report(other, "--without-pictures", "--out", out)
    assert done.returncode == 2
    assert "r.html: is there already and is not a report of this run; --force overwrites it" in done.stderr
    out.write_text("notes")
    assert report(run_copy, "--without-pictures", "--out", out).returncode == 2
    assert out.read_text() == "notes"
    assert report(run_copy, "--without-pictures", "--out", out, "--force").returncode == 0
    assert "Left out: made with --without-pictures" in Page(out.read_text()).text


def test_a_damaged_best_checkpoint_gives_way(run_copy: Path, report: Run) -> None:
    (run_copy / "checkpoints" / "best.pt").unlink()
    (run_copy / "checkpoints" / "best.pt").write_bytes(b"damaged")
    done = report(run_copy)
    assert done.returncode == 0
    assert "best.pt" in done.stderr.splitlines()[0]
    assert "last.pt, moving average" in (run_copy / "report.html").read_text()


def no_run(folder: Path) -> list[object]:
    (folder / "recipe.yaml").unlink()
    return [folder]


def no_metrics(folder: Path) -> list[object]:
    (folder / "metrics.jsonl").unlink()
    return [folder]


def with_metrics(text: str) -> Callable[[Path], list[object]]:
    def build(folder: Path) -> list[object]:
        (folder / "metrics.jsonl").write_text(text)
        return [folder]

    return build


WRONG: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no folder": (lambda folder: [folder / "gone"], "gone: not a run's folder: no such folder"),
    "no run": (no_run, "not a run's folder: there is no recipe.yaml in it"),
    "no metrics": (no_metrics, "there is nothing to report yet: no metrics.jsonl in it"),
    "no record": (with_metrics(""), "there is no record in it yet"),
    "damaged": (with_metrics('{"step": 1}\n{"st\n{"step": 2}\n'), "line 2: not a record"),
    "a number that is none": (with_metrics('{"step": 1e999}\n{"step": 2}\n'), "line 1: not a record"),
    "no epoch": (with_metrics('{"step": 3}\n'), "the record of step 3 does not say its epoch"),
    "back": (
        with_metrics('{"step": 3, "epoch": 0}\n{"step": 2, "epoch": 0}\n'),
        "step 2 does not follow the one before",
    ),
    "twice": (
        with_metrics('{"step": 3, "epoch": 0}\n{"step": 3, "epoch": 0}\n'),
        "step 3 does not follow the one before",
    ),
    "too far": (with_metrics('{"step": 1' + "0" * 400 + ', "epoch": 0}\n'), "does not follow the one before"),
    "nowhere": (lambda folder: [folder, "--out", folder / "no" / "r.html"], "in a folder that is there"),
    "a folder": (lambda folder: [folder, "--out", folder], "in a folder that is there"),
    "no data": (lambda folder: [folder, "--data-path", folder / "gone"], "gone: no such folder"),
    "no checkpoint": (lambda folder: [folder, "--checkpoint", folder / "gone.pt"], "gone.pt"),
    "a device": (lambda folder: [folder, "--batch-size", 0], "eval.batch_size"),
    "a flag": (lambda folder: [folder, "--output", "x"], "did you mean --out?"),
    "nothing": (lambda folder: [], "the following arguments are required: DIR"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_things_end_in_one_line(case: str, run_copy: Path, report: Run) -> None:
    build, said = WRONG[case]
    words = build(run_copy)
    before = sorted(run_copy.iterdir())
    done = report(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert sorted(run_copy.iterdir()) == before


def test_without_matplotlib(finished: Path, run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('no', name='matplotlib')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_script("scripts/report.py", finished)
    assert done.returncode == 2
    assert done.stderr == "report.py: error: report.py needs matplotlib: pip install matplotlib\n"


ENDS = {
    "error: the disk hangs": "The run ended with an error: the disk hangs.",
    "stopped by SIGTERM; saved": "The run was stopped by SIGTERM; saved; it has not gone on since.",
}


@pytest.mark.parametrize("last", ENDS)
def test_how_the_run_ended(last: str, run_copy: Path, report: Run) -> None:
    log = (run_copy / "train.log").read_text()
    (run_copy / "train.log").write_text(f"{log}2026-11-28 12:00:00 warning: <odd>\n2026-11-28 12:00:01 {last}\n")
    assert report(run_copy, "--without-pictures").returncode == 0
    page = (run_copy / "report.html").read_text()
    assert ENDS[last] in page
    assert "2026-11-28 12:00:00: warning: &lt;odd&gt;" in page


def test_a_checkpoint_of_another_run_is_refused(run_copy: Path, report: Run, tmp_path: Path) -> None:
    content = torch.load(run_copy / "checkpoints" / "last.pt", weights_only=True)
    content["recipe"]["train.seed"] += 1
    torch.save(content, tmp_path / "other.pt")
    done = report(run_copy, "--checkpoint", tmp_path / "other.pt")
    assert done.returncode == 2
    assert "is of another run" in done.stderr
    assert "train.seed differs" in done.stderr
