"""Reports: a page that is well formed and needs nothing else, with the figures of the run; replay of one node."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import pytest

from training_graph import GRAPHS

LLAMA = GRAPHS / "llama_static.onnx"
FEED = GRAPHS / "llama.npz"
SVG = "{http://www.w3.org/2000/svg}"
SECTIONS = (
    "Ranks and their memory",
    "Memory over the step",
    "Collectives",
    "Time line of the step",
    "Achieved rates",
    "A layer before and after",
    "Differences from the whole model",
)
LOADS = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(html.parser.HTMLParser):
    """A page as elements and tables; every element but void ones must be closed in order."""

    VOID = {"meta"}
    OPEN_CLOSED = {"rect", "line", "path", "circle"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.titles, self.tables = [], [], [], {}
        self.headings, self.words, self.rows = [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        if tag not in self.VOID:
            self.open.append(tag)
            self.words.append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, data):
        if self.words:
            self.words[-1] += data

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open[-3:]}"
        self.open.pop()
        text = self.words.pop()
        if tag in ("h1", "h2"):
            self.headings.append(text)
        elif tag == "caption":
            self.caption = text
        elif tag in ("td", "th"):
            self.rows[-1].append(text)
        elif tag == "table":
            self.tables.setdefault(self.caption, []).append(self.rows)
        elif tag == "title":
            self.titles.append(text)

    def columns(self, caption):
        """The table of that caption: header, then rows."""
        head, *rows = self.tables[caption][0]
        return [dict(zip(head, row, strict=True)) for row in rows]


def pictures(text):
    """Every chart, parsed as XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg xmlns.*?</svg>", text, re.DOTALL)]


def assert_loads_nothing(text, page):
    for tag, name, value in page.attributes:
        assert name not in LOADS and not name.startswith("on"), (tag, name, value)
        assert "url(" not in (value or ""), (tag, name, value)
    tags = {tag for tag, *_ in page.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    addresses = set(re.findall(r"https?://[^\"'\s<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}, addresses  # a name of XML, which nothing is loaded from


def format_bytes(count):
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def shard(autosp_onnx, folder, *options, model=LLAMA):
    result = autosp_onnx("shard", model, "-o", folder, *options)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def four_ranks(autosp_onnx, tmp_path_factory):
    return shard(autosp_onnx, tmp_path_factory.mktemp("llama") / "out", "--sp", 4)


@pytest.fixture(scope="module")
def reported(autosp_onnx, four_ranks, tmp_path_factory):
    """Text of the page and the same figures as JSON."""
    folder = tmp_path_factory.mktemp("report")
    page, figures = folder / "report.html", folder / "report.json"
    result = autosp_onnx("report", four_ranks, "--feed", FEED, "--model", LLAMA, "-o", page, "--json", figures)
    assert result.returncode == 0, result.stderr
    return page.read_text(encoding="utf-8"), json.loads(figures.read_text()), result.stdout, folder


def test_page_is_well_formed_and_loads_nothing(reported):
    text, *_ = reported
    page = Page(text)
    assert_loads_nothing(text, page)
    assert tuple(page.headings) == ("llama_static.onnx over 4 ranks", *SECTIONS)
    charts = pictures(text)
    assert len(charts) == 5  # bars, bands, time line, roofline, layer
    for chart in charts:
        assert chart.get("aria-label") and chart.get("viewBox")
        for shape in chart.iter():
            for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r"):
                assert shape.get(name) is None or np.isfinite(float(shape.get(name)))
            for name in ("width", "height", "r"):
                assert float(shape.get(name, 0)) >= 0
    assert len(text) < 2e6


def test_figures_are_those_of_run(autosp_onnx, four_ranks, reported):
    text, figures, stdout, _ = reported
    run = json.loads(autosp_onnx("run", four_ranks, "--feed", FEED, "--json").stdout)
    rows = Page(text).columns("Each rank, in this run")
    assert len(rows) == len(run["ranks"]) == len(figures["ranks"]) == 4
    for row, reports, ran in zip(rows, figures["ranks"], run["ranks"], strict=True):
        for field in ("rank", "loss", "collectives", "bytes_sent", "planned_peak_bytes"):
            assert reports[field] == ran[field]
        # Pages are counted, of which kernels' scratch memory is not always touched as a whole.
        assert abs(reports["measured_peak_bytes"] - ran["measured_peak_bytes"]) <= 16384
        assert row["rank"] == str(ran["rank"]) and row["collectives"] == str(ran["collectives"])
        assert row["arena planned"] == format_bytes(ran["planned_peak_bytes"])
        assert row["arena measured"] == format_bytes(reports["measured_peak_bytes"])
        assert row["sent"] == format_bytes(ran["bytes_sent"])
        assert row["peak"] == format_bytes(reports["peak_bytes"])
    assert figures["tokens"] == 120 and "4 ranks run one training step on 120 tokens" in stdout
    assert "4 ranks run one training step on 120 tokens" in text


def test_memory_is_what_plan_predicts(autosp_onnx, reported):
    text, figures, *_ = reported
    plan = json.loads(autosp_onnx("plan", LLAMA, "--sp", 4, "--device", "cpu", "--json").stdout)
    rank = figures["ranks"][plan["peak_rank"]]
    buckets = {bucket["name"]: bucket["bytes"] for bucket in rank["buckets"]}
    assert rank["planned_peak_bytes"] == plan["planned_peak_bytes"] and sum(buckets.values()) == rank["peak_bytes"]
    # Constants count as inputs; some are one when a graph has been written and read again.
    assert 0 <= plan["memory_bytes"]["inputs"] - buckets["inputs"] <= 256
    assert {name: size for name, size in plan["memory_bytes"].items() if name != "inputs"} == {
        name: size for name, size in buckets.items() if name != "inputs"
    }
    whole = json.loads(autosp_onnx("plan", LLAMA, "--sp", 1, "--device", "cpu", "--json").stdout)
    assert figures["unsharded"]["peak_bytes"] == whole["peak_bytes"]
    # The curve reaches what is live at the peak, and never more than is set aside.
    memory = figures["memory"]
    live = np.sum(memory["bytes"], axis=0)
    assert len(live) == len(memory["at"])
    rank = figures["ranks"][memory["rank"]]
    gaps = next(bucket["bytes"] for bucket in rank["buckets"] if bucket["name"] == "gaps")
    assert live.max() == memory["planned_bytes"] - gaps and memory["planned_bytes"] == rank["peak_bytes"]
    table = Page(text).columns("Live bytes by bucket while a node runs")
    assert len(table) == len(live)
    kept = [int(re.sub(r"\D", "", row["kept activations"])) for row in table]
    assert kept == memory["bytes"][memory["buckets"].index("kept activations")] and max(kept) > 0


def test_collectives_are_those_of_the_manifest(four_ranks, reported):
    text, figures, *_ = reported
    manifest = json.loads((four_ranks / "manifest.json").read_text())
    expected = {}
    for entry in manifest["collectives"]:
        key = entry["phase"], entry["kind"], entry["purpose"]
        count, sent = expected.get(key, (0, 0))
        expected[key] = count + 1, sent + entry["bytes_per_rank"]
    rows = Page(text).columns("By kind; what one rank takes part in")
    told = {(r["phase"], r["kind"], r["purpose"]): (int(r["count"]), r["sent"]) for r in rows if r["phase"] != "total"}
    assert told == {key: (count, format_bytes(sent)) for key, (count, sent) in expected.items()}
    assert rows[-1]["count"] == str(manifest["totals"]["collectives"])
    # Ulysses' exchange around each of two layers: three in, one out, and the same backward.
    layers = {(r["layer"], r["phase"]): int(r["count"]) for r in figures["collectives"] if r["purpose"] == "reshard"}
    assert layers == {(layer, phase): 4 for layer in (1, 2) for phase in ("forward", "backward")}
    before, after = figures["layers"]["before"], figures["layers"]["after"]
    assert [(r["phase"], r["count"]) for r in before] == [("forward", 3), ("backward", 3)]
    assert [(r["phase"], r["count"]) for r in after] == [("forward", 1), ("backward", 1)]
    assert figures["layers"]["heads"] == 8 and figures["layers"]["alike"]


def test_times_add_up(reported):
    _, figures, *_ = reported
    for rank in figures["ranks"]:
        assert 0 <= rank["waiting_seconds"] <= rank["communication_seconds"]
        # Collectives block the rank: nothing is computed meanwhile.
        assert rank["exposed_seconds"] == pytest.approx(rank["communication_seconds"])
        assert rank["compute_seconds"] + rank["communication_seconds"] <= rank["step_seconds"] * (1 + 1e-9)
        segments = [s for s in figures["timeline"]["segments"] if s["rank"] == rank["rank"]]
        computing = sum(s["duration"] for s in segments if s["kind"] in ("forward", "backward", "recompute"))
        waiting = sum(s["duration"] for s in segments if s["kind"] == "waiting")
        assert computing == pytest.approx(rank["compute_seconds"])
        assert waiting == pytest.approx(rank["waiting_seconds"])
        assert all(0 <= s["start"] <= s["start"] + s["duration"] <= figures["step_seconds"] + 1e-9 for s in segments)
    # The last to come to a collective waits for nobody.
    assert not figures["timeline"]["merged"]
    first = next(s["label"] for s in figures["timeline"]["segments"] if s["kind"] == "transfer")
    begins = [s["start"] for s in figures["timeline"]["segments"] if s["label"] == first and s["kind"] == "transfer"]
    assert len(begins) == 4 and max(begins) == pytest.approx(min(begins))


def test_rates_follow_from_the_shapes(autosp_onnx, reported):
    text, figures, *_ = reported
    plan = json.loads(autosp_onnx("plan", LLAMA, "--sp", 4, "--device", "cpu", "--json").stdout)
    flops = sum(plan[phase] for phase in ("forward_flops", "backward_flops", "recompute_flops"))
    # The executor makes some transposes part of the products that read them.
    assert sum(op["flops"] for op in figures["operators"]) == pytest.approx(4 * flops, rel=0.02)
    names = {row["operator"] for row in Page(text).columns("Operators of all ranks, by time")}
    assert {"MatMul", "Attention", "AttentionGrad", "AllToAll", "AllReduce"} <= names
    seconds = [op["seconds"] for op in figures["operators"]]
    assert seconds == sorted(seconds, reverse=True)


def test_errors_are_those_of_validate(autosp_onnx, four_ranks, reported):
    text, figures, *_ = reported
    result = autosp_onnx("validate", LLAMA, four_ranks, "--feed", FEED, "--json")
    expected = {o["name"]: o["relative_error"] for o in json.loads(result.stdout)["outputs"]}
    outputs = figures["validation"]["outputs"]
    assert {o["name"]: o["relative_error"] for o in outputs} == pytest.approx(expected)
    assert outputs[0]["role"] == "loss"
    errors = [o["relative_error"] for o in outputs[1:]]
    assert errors == sorted(errors, reverse=True)
    rows = Page(text).columns("The loss, and the largest errors")
    assert rows[0]["output"] == "loss" and rows[1]["relative"] == f"{errors[0]:.2e}"
    assert figures["validation"]["equal"] and all(row["verdict"] == "equal" for row in rows)


def test_wrong_results_are_shown_and_end_with_1(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    for path in out.glob("rank_*.onnx"):
        graph = onnx.load(path, load_external_data=False)
        node = next(node for node in graph.graph.node if node.op_type == "Sigmoid")
        node.op_type = "Tanh"
        onnx.save(graph, path)
    page = tmp_path / "page.html"
    result = autosp_onnx("report", out, "--feed", FEED, "--model", LLAMA, "-o", page)
    assert result.returncode == 1, result.stderr
    assert "some results are not those of the whole model" in result.stdout
    rows = Page(page.read_text()).columns("The loss, and the largest errors")
    assert "DIFFERS" in {row["verdict"] for row in rows}


EVIL = '</title><script>alert("x")</script>&amp;\'"<b>'


def test_names_are_escaped(autosp_onnx, tmp_path):
    """Names of nodes, outputs and files are whatever a model says."""
    model = onnx.load(LLAMA)
    renamed = model.graph.output[1].name
    for node in model.graph.node:
        node.name = EVIL + node.name
        for k, output in enumerate(node.output):
            if output == renamed:
                node.output[k] = EVIL + renamed
    assert renamed.endswith(".grad")
    model.graph.output[1].name = EVIL + renamed
    path = tmp_path / "a<b>&'\".onnx"
    onnx.save(model, path)
    parameter = renamed.removesuffix(".grad")
    out = shard(autosp_onnx, tmp_path / "<i>out", "--sp", 2, "--grad", f"{parameter}={EVIL}{renamed}", model=path)
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    result = autosp_onnx("report", out, "--feed", FEED, "--model", path, "-o", page, "--json", figures)
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert_loads_nothing(text, parsed)
    assert "<script" not in text and "<b>" not in text and "<i>" not in text
    assert parsed.headings[0] == "a<b>&'\".onnx over 2 ranks"
    outputs = [row["output"] for table in parsed.tables.values() for row in as_rows(table[0]) if "output" in row]
    assert EVIL + renamed in outputs
    hints = "".join(title.text for chart in pictures(text) for title in chart.iter(f"{SVG}title"))
    assert '<script>alert("x")' in hints
    again = tmp_path / "again.html"
    assert autosp_onnx("report", figures, "-o", again).returncode == 0
    assert again.read_text(encoding="utf-8") == text


def as_rows(table):
    head, *rows = table
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_without_feed_and_model(autosp_onnx, four_ranks, tmp_path):
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    result = autosp_onnx("report", four_ranks, "-o", page, "--json", figures)
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    assert report["validation"] is None and report["unsharded"] is None and report["feed"] == ""
    assert "inputs generated" in page.read_text() and "not compared" in page.read_text()


def test_many_nodes_are_merged(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp-mesh", "u=4,g=2,r=2", "--dim", "seq=64", model=GRAPHS / "llama.onnx")
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    result = autosp_onnx("report", out, "-o", page, "--json", figures)
    assert result.returncode == 0, result.stderr
    report = json.loads(figures.read_text())
    assert report["timeline"]["merged"] and page.stat().st_size < 2e6
    assert "in columns of equal width" in page.read_text()
    layers = report["layers"]
    assert (layers["heads"], layers["positions"], layers["batch"]) == (8, 64, 3)
    assert {(r["heads"], r["queries"], r["keys"], r["tokens"]) for r in layers["ranks"]} == {(1, 32, 64, 4)}
    assert {(r["row"], r["column"]) for r in layers["ranks"]} == {(row, column) for row in range(8) for column in (0, 1)}
    for rank in report["ranks"]:
        waiting = [s for s in report["timeline"]["segments"] if s["rank"] == rank["rank"]]
        communicating = sum(s["duration"] for s in waiting if s["kind"] in ("waiting", "transfer"))
        assert communicating == pytest.approx(rank["communication_seconds"], rel=0.1)


def test_blocks_of_a_ring_are_one_attention(autosp_onnx, tmp_path):
    """A query sees the keys before: of 61, in blocks of 16, 15, 15 and 15."""
    model = GRAPHS / "matrix" / "llama_h8_kv2.onnx"
    options = ("--sp-mesh", "r=4", "--ring", "on", "--dim", "seq=61", "--dim", "batch=2")
    out = shard(autosp_onnx, tmp_path / "out", *options, model=model)
    figures = tmp_path / "figures.json"
    result = autosp_onnx("report", out, "-o", tmp_path / "page.html", "--json", figures)
    assert result.returncode == 0, result.stderr
    layers = json.loads(figures.read_text())["layers"]
    assert (layers["count"], layers["positions"]) == (1, 61)
    assert [rank["keys"] for rank in layers["ranks"]] == [16, 31, 46, 61]


def test_two_reports_side_by_side(autosp_onnx, reported, tmp_path):
    *_, folder = reported
    other = shard(autosp_onnx, tmp_path / "other", "--sp", 2, "--recompute", "full")
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    result = autosp_onnx("report", "--compare", folder / "report.json", other, "--feed", FEED, "-o", page, "--json", figures)
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert_loads_nothing(text, parsed)
    assert len(pictures(text)) == 10 and parsed.headings[1:] == ["Side by side", *SECTIONS]
    both = json.loads(figures.read_text())
    assert both["first"] == json.loads((folder / "report.json").read_text())
    assert len(both["second"]["ranks"]) == 2
    caption = "Figures of both; times are averages over ranks, sizes the largest of any"
    head, *rows = parsed.tables[caption][0]
    values = {row[0]: row[1:] for row in rows}
    assert values["ranks"] == ["4", "2", "0.5"] and values["recompute"] == ["mincut", "full", ""]
    peaks = [max(rank["peak_bytes"] for rank in both[side]["ranks"]) for side in ("first", "second")]
    assert values["peak per rank"] == [*map(format_bytes, peaks), f"{peaks[1] / peaks[0]:.3g}"]


def test_bad_requests(autosp_onnx, four_ranks, reported, tmp_path):
    *_, folder = reported
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "other.json").write_text('{"ranks": []}')
    figures = json.loads((folder / "report.json").read_text())
    (tmp_path / "newer.json").write_text(json.dumps(figures | {"report_format": 99}))
    (tmp_path / "wrong.json").write_text(json.dumps(figures | {"steps": "three"}))
    memory = figures["memory"] | {"at": figures["memory"]["at"][1:]}
    (tmp_path / "uneven.json").write_text(json.dumps(figures | {"memory": memory}))
    layers = figures["layers"] | {"ranks": []}
    (tmp_path / "nowhere.json").write_text(json.dumps(figures | {"layers": layers}))
    page = tmp_path / "page.html"
    saved = folder / "report.json"
    refused = {
        (empty, "-o", page): "manifest.json",
        (tmp_path / "none", "-o", page): "none",
        (tmp_path / "other.json", "-o", page): "it has no 'report_format'",
        (tmp_path / "newer.json", "-o", page): "of another version",
        (tmp_path / "wrong.json", "-o", page): "'steps' is not a whole number",
        (tmp_path / "uneven.json", "-o", page): "different lengths",
        (tmp_path / "nowhere.json", "-o", page): "on no rank",
        ("-o", page): "no sharded model is given",
        (four_ranks, "--compare", saved, saved, "-o", page): "is given besides",
        (saved, "--feed", FEED, "-o", page): "nothing is to run",
        (saved, "-o", saved): "reads",
        (four_ranks, "--model", LLAMA, "-o", LLAMA): "that --model reads",
        (four_ranks, "-o", four_ranks / "manifest.json"): "the sharded model",
        (four_ranks, "-o", page, "--json", page): "both name",
        (four_ranks, "-o", tmp_path / "no" / "page.html"): "cannot be written",
        (four_ranks, "--device", "cpux", "-o", page): "neither a known device nor a file",
        (four_ranks, "--model", GRAPHS / "gpt2_static.onnx", "-o", page): "is not the model",
    }
    before = LLAMA.read_bytes(), saved.read_bytes(), (four_ranks / "manifest.json").read_bytes()
    for arguments, message in refused.items():
        result = autosp_onnx("report", *arguments)
        assert result.returncode == 2 and message in result.stderr, (arguments, result.stderr)
        assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr, result.stderr
        assert not page.exists()
    assert before == (LLAMA.read_bytes(), saved.read_bytes(), (four_ranks / "manifest.json").read_bytes())


def nodes_of(folder, op):
    return [node.name for node in onnx.load(folder / "rank_0.onnx").graph.node if node.op_type == op]


@pytest.mark.parametrize("op", ["Attention", "MatMul", "AllToAll", "AllReduce", "Gather"])
def test_replay_of_a_node(autosp_onnx, four_ranks, op):
    for feed in ((), ("--feed", FEED)):
        result = autosp_onnx("replay", four_ranks, nodes_of(four_ranks, op)[0], "--rank", 1, "--json", *feed)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert (report["operator"], report["rank"], report["repeat"]) == (op, 1, 20)
        assert report["seconds"] > 0 and report["attainable_seconds"] > 0
        assert report["flops_per_second"] == pytest.approx(report["flops"] / report["seconds"])
        assert report["bytes_per_second"] == pytest.approx(report["bytes"] / report["seconds"])
    if op == "Attention":
        # Of 8 heads 2, 4 KV heads 1, three sequences of 40; two products over half of all pairs.
        assert report["operands"][:2] == ["float32[3, 2, 40, 12]", "float32[3, 1, 40, 12]"]
        assert report["flops"] == pytest.approx(2 * 3 * 2 * 40 * 40 * 24 * (41 / 80))


def test_replay_agrees_with_the_trace(autosp_onnx, four_ranks, reported):
    """Operations of a node are those that the report counts for its operator."""
    _, figures, *_ = reported
    attention = next(op for op in figures["operators"] if op["operator"] == "Attention")
    reports = []
    for name in nodes_of(four_ranks, "Attention"):
        for rank in range(4):
            reports.append(json.loads(autosp_onnx("replay", four_ranks, name, "--rank", rank, "--json").stdout))
    assert len(reports) == attention["count"]
    assert sum(report["flops"] for report in reports) == pytest.approx(attention["flops"])
    assert sum(report["bytes"] for report in reports) == pytest.approx(attention["bytes"])


def test_replay_of_what_does_not_run(autosp_onnx, four_ranks):
    attention = nodes_of(four_ranks, "Attention")[0]
    view = nodes_of(four_ranks, "Reshape")[0]
    refused = {
        (attention[:-1],): f"did you mean '{attention}'?",
        (view,): "is a view",
        (attention, "--rank", 4): "there is no rank 4",
        (attention, "--device", "cpux"): "neither a known device nor a file",
    }
    for arguments, message in refused.items():
        result = autosp_onnx("replay", four_ranks, *arguments)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr


def test_replay_as_text(autosp_onnx, four_ranks):
    result = autosp_onnx("replay", four_ranks, nodes_of(four_ranks, "Attention")[0], "--feed", FEED)
    assert result.returncode == 0, result.stderr
    assert "GFLOP/s" in result.stdout and "GB/s" in result.stdout and "the median of 20" in result.stdout


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed, which scripts/setup leaves to you (apt-get install chromium)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_page(reported, tmp_path, scheme):
    """The layout that a browser makes: no chart is empty, nothing runs over the page's edge."""
    *_, folder = reported
    settings = "preferredColorScheme=" + ("0" if scheme == "dark" else "1")
    picture = tmp_path / "page.png"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    command += [f"--blink-settings={settings}", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    command.append((folder / "report.html").as_uri())
    drawn = subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert drawn.returncode == 0 and picture.exists(), drawn.stderr
    pixels = read_png(picture)
    corner = pixels[2, 2].astype(int).sum()
    assert corner < 150 if scheme == "dark" else corner > 700
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    assert colours > 30  # charts have been drawn, not text alone
    assert (pixels[:, :40] == pixels[2, 2]).all() and (pixels[:, -40:] == pixels[2, 2]).all()


def read_png(path):
    """An image without interlacing, 8 bits a channel, as [height, width, 3]."""
    import struct
    import zlib

    data = path.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", chunk[:10])
        elif kind == b"IDAT":
            packed += chunk
        at += 12 + length
    channels = {2: 3, 6: 4}[colour]
    assert depth == 8
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    pixels = np.zeros((height, width * channels), np.uint8)
    for y, (kind, line) in enumerate(zip(rows[:, 0], rows[:, 1:], strict=True)):
        above = pixels[y - 1] if y else np.zeros(width * channels, np.uint8)
        pixels[y] = unfiltered(kind, line, above, channels)
    return pixels.reshape(height, width, channels)[..., :3]


def unfiltered(kind, line, above, channels):
    if kind == 0:
        return line
    if kind == 2:
        return line + above
    if kind == 1:
        return np.cumsum(line.reshape(-1, channels), axis=0, dtype=np.uint64).astype(np.uint8).ravel()
    result = [0] * len(line)
    for k, byte in enumerate(line.tolist()):
        left = result[k - channels] if k >= channels else 0
        up = int(above[k])
        corner = int(above[k - channels]) if k >= channels else 0
        if kind == 3:
            guess = (left + up) // 2
        else:
            estimate = left + up - corner
            guess = min((left, up, corner), key=lambda value: abs(estimate - value))
        result[k] = (byte + guess) & 255
    return np.array(result, np.uint8)
