"""The audit: our own runs read back, planted defects named by their codes, clean twins without alarm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache, partial
from html import unescape
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from strategies import DISTINCT, STOCHASTIC

import deis_analysis as da
from deis_analysis.audit import CODES, Finding, TableSubject, overview, page, subject_of
from deis_analysis.audit.case import read_case
from deis_analysis.audit.specs import registry_subject
from deis_analysis.audit.subject import Prepared
from deis_analysis.cli import main
from deis_analysis.tableau.extraction import Refusal

VP = da.VPLinear()
NAMES_OF_DDIM = ("ddim", "edm_euler", "dpm_1", "dpmpp_1", "euler")


def codes(report, *severities):
    return {f.code for f in report.findings if f.severity in (severities or ("error", "warning"))}


# -- reading --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*DISTINCT, *STOCHASTIC])
def test_our_own_runs_are_read_back_as_their_tables(name):
    row = da.SOLVERS[name]
    prepared = registry_subject(name).own(24)
    case = read_case(prepared)
    ts = da.grid(row.home, next(n for n in range(24, 0, -1) if n % row.block == 0 and row.calls(n) <= 24))
    built = row.build(row.home, ts)
    a, b = case.table.butcher(), built.butcher()
    scale = 1e-13 * (1 + np.abs(b.weights).max())
    assert np.abs(a.weights - b.weights).max() <= scale
    assert np.abs(a.start - b.start).max() <= 1e-11 * np.abs(b.start).max()
    assert np.array_equal(a.times, b.times)
    assert np.abs(a.noise @ a.noise.T - b.noise @ b.noise.T).max(initial=0) <= 1e-13 * (
        1 + np.abs(b.noise).max(initial=0) ** 2
    )
    assert case.reading.calls == built.nfe
    assert case.reading.residual < 1e-13


def test_extract_is_the_short_form():
    ts = da.grid(VP, 6)
    for name in ("tab2", "sde_dpmpp_2m"):
        table = da.build(name, VP, ts)
        found = da.extract(
            lambda model, x, noise, t=table: da.run(t, model, x, lambda _: noise()),
            6,
            prediction=table.prediction,
            noises=table.noise.shape[1],
            process=VP,
            t_end=float(ts[-1]),
        )
        assert da.distance(found, table) <= 1e-14 * (1 + np.abs(table.butcher().weights).max())
    with pytest.raises(Refusal, match="calls=7, but the sampler makes 6"):
        da.extract(lambda model, x: da.run(da.build("ddim", VP, ts), model, x), 7, process=VP)


def karras(function, **options):
    """A function (model, x, sigmas), model(x, sigma) → x₀, as a subject."""
    return da.audit_sampler(function, convention="sigmas", final_zero=True, **options)


def dpmpp_2m(model, x, sigmas, *, factor=0.5, told=lambda s: s, used=lambda s: s, first_order_start=True):
    """DPM-Solver++(2M) as code bases write it, with handles to break it by."""
    lam, old, before = lambda s: -torch.log(s), None, None
    for s, t in pairwise(sigmas):
        x0 = model(x, told(s) * torch.ones(x.shape[0], dtype=x.dtype))
        s = used(s)
        if t == 0:
            return x0
        h = lam(t) - lam(s)
        slope = 0.0 if old is None else (x0 - old) * h / before
        x = t / s * x - torch.expm1(-h) * (x0 + factor * slope)
        old, before = x0, h
    return x


def dpmpp_3m(model, x, sigmas, *, second=2.0):
    """Third order: ``second`` = 2 is right, 1 is what is released."""
    lam, values, steps = lambda s: -torch.log(s), [], []
    for s, t in pairwise(sigmas):
        values.insert(0, model(x, s))
        if t == 0:
            return values[0]
        h = lam(t) - lam(s)
        phi1 = torch.expm1(-h)
        phi2 = phi1 / h + 1
        x, d = t / s * x - phi1 * values[0], 0.0
        if len(values) == 2:
            d = phi2 * (values[0] - values[1]) * h / steps[0]
        elif len(values) > 2:
            r0, r1 = steps[0] / h, steps[1] / h
            d10, d11 = (values[0] - values[1]) / r0, (values[1] - values[2]) / r1
            d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
            d = phi2 * d1 - second * (phi2 / h - 0.5) * d2
        x = x + d
        steps.insert(0, h)
    return x


# -- planted defects and their clean twins --------------------------------------------------------
def test_a_clean_sampler_raises_no_alarm_and_is_named():
    report = karras(dpmpp_2m, order=2)
    assert codes(report) == set(), report.findings
    assert report.nearest["name"] == "dpmpp_2m"
    assert report.nearest["distance"] < 1e-12
    assert abs(report.observed_order - 2) < 0.3
    assert abs(report.local_order - 3) < 0.3
    assert report.nfe == 20


def test_half_a_second_difference():
    """The same code with the factor right and wrong."""
    right, wrong = karras(dpmpp_3m, order=3), karras(partial(dpmpp_3m, second=1.0), order=3)
    assert codes(right) == set(), right.findings
    assert {"ORD-BELOW-DECLARED", "ORD-HALF-SECOND-DIFFERENCE"} <= codes(wrong, "error")
    assert abs(right.order_without_startup - 3) < 0.4
    assert abs(wrong.order_without_startup - 2) < 0.3
    assert (right.exactness_degree, wrong.exactness_degree) == (2, 1)


def test_a_forgotten_correction_is_first_order():
    report = karras(partial(dpmpp_2m, factor=0.0), order=2)
    assert "ORD-BELOW-DECLARED" in codes(report, "error")
    assert abs(report.observed_order - 1) < 0.3


def test_a_wrong_weight_is_first_order():
    report = karras(partial(dpmpp_2m, factor=-0.5), order=2)
    assert "ORD-BELOW-DECLARED" in codes(report, "error")


def test_the_level_told_is_not_the_level_used():
    """σ of the next time where σ of this time is meant, in the step or for the model; and a constant shift."""
    for broken in ({"told": lambda s: 0.9 * s}, {"used": lambda s: 1.05 * s}):
        report = karras(partial(dpmpp_2m, **broken), order=2)
        assert "SCH-LEVEL-MISMATCH" in codes(report, "error"), (broken, report.findings)
        assert report.time_mismatch > 0.04


def sigma_s_for_sigma_t(process, ts):
    """DDIM with σ of the wrong end in one place."""
    table = da.build("ddim", process, ts)
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    outputs = np.diag(sigma[1:] - alpha[1:] / alpha[:-1] * sigma[1:], -1)
    return da.Tableau(table.times, table.states, outputs)


def wrong_node(process, ts):
    """AB2 that takes the value before the last in place of the last."""
    table = da.build("tab1", process, ts)
    outputs = table.outputs.copy()
    for k in range(3, ts.size):
        outputs[k, k - 3], outputs[k, k - 2] = outputs[k, k - 2], 0.0
    return da.Tableau(table.times, table.states, outputs)


def wrong_last(process, ts):
    """The last step stops half-way to where it says."""
    moved = ts.copy()
    moved[-1] = 0.5 * (ts[-1] + ts[-2])
    table = da.build("ddim", process, moved)
    return da.Tableau(np.append(moved[:-1], ts[-1]), table.states, table.outputs)


def told_twice(process, ts):
    """One time is told again where the level has moved on."""
    times = ts.copy()
    times[ts.size // 2] = times[ts.size // 2 - 1]
    table = da.build("tab2", process, ts)
    return da.Tableau(times, table.states, table.outputs)


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (sigma_s_for_sigma_t, "SCH-LEVEL-MISMATCH"),
        (wrong_node, "ORD-BELOW-DECLARED"),
        (wrong_last, "SCH-LAST-LEVEL"),
        (told_twice, "SCH-DUPLICATE-TIMES"),
    ],
)
def test_defects_planted_in_tables(build, code):
    report = da.audit_sampler(TableSubject("planted", build, 2 if build is wrong_node else None))
    found = codes(report, "error")
    assert code in found, report.findings


def no_start(process, ts):
    """AB2 from the first step on, with a history of zeros in place of a first-order start."""
    table = da.build("tab1", process, ts)
    outputs = table.outputs.copy()
    outputs[1, 0] *= 1.5
    return da.Tableau(table.times, table.states, outputs)


def float32_weights(process, ts):
    """Right, but for the rounding of its numbers."""
    table = da.build("tab2", process, ts)
    round_off = lambda a: a.astype(np.float32).astype(np.float64)  # noqa: E731
    return da.Tableau(table.times, round_off(table.states), round_off(table.outputs))


def test_a_forgotten_start_and_float32_weights():
    report = da.audit_sampler(TableSubject("planted", no_start, 2))
    assert codes(report, "error") & {"SCH-LEVEL-MISMATCH", "SCH-STATE-SCALE", "ORD-BELOW-DECLARED"}, report.findings
    assert report.worst == "error"
    report = da.audit_sampler(TableSubject("planted", float32_weights, 3))
    assert "ID-FLOAT32" in codes(report, "info"), report.findings
    assert 1e-9 < report.nearest["distance"] < 1e-5
    assert report.nearest["name"] == "tab2"
    assert codes(report) == set(), report.findings


class Sampler:
    """A subject made of a function (model, x) at each size."""

    spec, declared_order = "planted", None

    def __init__(self, function, process=VP, kind="t2", **options):
        self.function, self.process, self.kind, self.options = function, process, kind, options

    def own(self, nfe):
        return self._at(da.grid(self.process, nfe, self.kind))

    def ladder(self, steps):
        return self._at(da.grid(self.process, steps, self.kind, *self.options.get("range", (0.4, 0.1))))

    def _at(self, ts):
        convention = self.options.get("convention", da.Convention())
        return Prepared(lambda model, x: self.function(model, x, ts), self.process, convention, float(ts[-1]))


def ddim(model, x, ts, *, process=VP, told=lambda t: t, cast=lambda x: x, change=lambda x: x):
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    for k in range(ts.size - 1):
        eps = model(cast(x), told(float(ts[k])))
        x0 = change((x - sigma[k] * eps) / alpha[k])
        x = cast(alpha[k + 1] * x0 + sigma[k + 1] * eps)
    return x


def test_rounded_times_float32_and_thresholding():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    discrete = da.VPDiscrete(np.cumprod(1 - betas))
    clean = Sampler(partial(ddim, process=discrete), discrete, range=(600.0, 200.0))
    assert codes(da.audit_sampler(clean)) == set()
    rounded = partial(ddim, process=discrete, told=round)
    report = da.audit_sampler(Sampler(rounded, discrete, range=(600.0, 200.0)))
    assert codes(report) == {"SCH-ROUNDED-TIMES"}, report.findings
    single = partial(ddim, cast=lambda x: x.to(torch.float32))
    report = da.audit_sampler(Sampler(single))
    assert "NUM-FLOAT32" in codes(report, "info")
    assert codes(report) == set()
    assert report.nearest["name"] in NAMES_OF_DDIM
    clipping = da.audit_sampler(Sampler(partial(ddim, change=lambda x0: x0.clamp(-1, 1))))
    assert not clipping.linear
    assert codes(clipping) == {"RUN-NONLINEAR"}
    assert clipping.observed_order is not None


def test_calls_that_are_wasted_or_repeated():
    def asks_twice(model, x, ts):
        model(x, float(ts[0]))
        return ddim(model, x, ts)

    def ignores(model, x, ts):
        model(0.5 * x, float(0.5 * (ts[0] + ts[1])))
        return ddim(model, x, ts)

    report = da.audit_sampler(Sampler(asks_twice))
    assert {"NFE-WASTED", "NFE-REPEATED"} <= codes(report, "error")
    assert report.wasted_calls == [1]
    assert "NFE-WASTED" in codes(da.audit_sampler(Sampler(ignores)), "error")


def test_a_start_of_the_wrong_order_is_said_and_is_no_error():
    report = da.audit_sampler("registry:tab3")
    assert "ORD-START" in codes(report, "info")
    assert codes(report) == set()


RELEASED_AT_HALF = ("dpm_3m", "dpmpp_3m")
audited = cache(da.audit_sampler)

ONE_OF_EACH = (
    *("ddim", "tab2", "edm_heun", "unipc3_bh2_x0", "rhork_3ssprk", "dpm_fast", "f_pndm", "reversible_heun", "obelm"),
    *(
        "euler",
        "flow_heun",
        "dpmpp_3s",
        "dpmpp_3m",
        "sde_dpmpp_2m",
        "seeds_2",
        "edm_churn",
        "euler_maruyama",
        "gdss_s4",
    ),
    "g2rpo",
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_no_false_alarm_on_rows_of_the_registry(name):
    """One of every family here; all 130 by ``deis-analysis audit --all registry``."""
    report = audited(f"registry:{name}")
    assert report.worst != "error", report.findings
    warnings = codes(report, "warning")
    assert warnings <= ({"ORD-HALF-SECOND-DIFFERENCE"} if name in RELEASED_AT_HALF else set()), report.findings
    assert report.nearest["distance"] < 1e-12


# -- samplers that misbehave ----------------------------------------------------------------------
def crashes(model, x, ts):
    raise RuntimeError("no such scheduler")


def never_calls(model, x, ts):
    return 0.5 * x


def calls_forever(model, x, ts):
    while True:
        x = x - 0.01 * model(x, 0.5)


def wrong_shape(model, x, ts):
    return model(x, 0.5)[:1]


def makes_nan(model, x, ts):
    return model(x, 0.5) * float("nan")


def adapts(model, x, ts):
    for t in ts[: 3 + int(float(abs(x).max()) > 1)]:
        x = x - 0.1 * model(x, float(t))
    return x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (crashes, "RuntimeError: no such scheduler"),
        (never_calls, "never called the model"),
        (calls_forever, "more than 2000 times"),
        (wrong_shape, "returned an array of shape"),
        (makes_nan, "NaN or infinity in its result"),
        (adapts, "depend"),
    ],
)
def test_samplers_that_misbehave_get_a_report(function, message):
    report = da.audit_sampler(Sampler(function))
    assert message in report.findings[0].message
    assert report.findings[0].code in ("RUN-FAILED", "RUN-NONLINEAR")
    assert report.table is None
    assert json.loads(json.dumps(report.to_dict()))["linear"] is False


# -- the command ----------------------------------------------------------------------------------
KEYS = {
    *("spec", "linear", "superposition_residual", "nfe", "wasted_calls", "declared_order", "observed_order"),
    *("local_order", "order_without_startup", "exactness_degree", "nearest", "time_mismatch", "duplicate_times"),
    *("findings", "errors"),
}

SOURCE = """
import torch

def euler(model, x, sigmas):
    for s, t in zip(sigmas[:-1], sigmas[1:]):
        x = x + (t - s) * (x - model(x, s)) / s
    return x

def late(model, x, sigmas):
    for s, t in zip(sigmas[:-1], sigmas[1:]):
        x = x + (t - s) * (x - model(x, 0.8 * s)) / s
    return x

def edm(net, latents, num_steps=18, sigma_min=0.002, sigma_max=80, rho=7):
    i = torch.arange(num_steps, dtype=torch.float64)
    a, b = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    t = torch.cat([(a + i / (num_steps - 1) * (b - a)) ** rho, torch.zeros(1)])
    x = latents * t[0]
    for k in range(num_steps):
        d = (x - net(x, t[k])) / t[k]
        y = x + (t[k + 1] - t[k]) * d
        if k < num_steps - 1:
            e = (y - net(y, t[k + 1])) / t[k + 1]
            y = x + (t[k + 1] - t[k]) * (d + e) / 2
        x = y
    return x
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "samplers.py"
    path.write_text(SOURCE)
    return path


def audit(*arguments):
    result = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_on_functions_in_a_file(source, tmp_path):
    json_file, html_file = tmp_path / "a.json", tmp_path / "a.html"
    status, text = audit(f"{source}:euler?convention=sigmas&order=1", "--json", json_file, "--html", html_file)
    assert status == 0, text
    data = json.loads(json_file.read_text())
    assert set(data) >= KEYS
    assert data["nearest"]["name"] in NAMES_OF_DDIM
    assert set(data["errors"]) == {"5", "10", "20"}
    assert "ID-EQUAL" in text
    assert "<svg" in html_file.read_text()
    status, text = audit(f"{source}:late?convention=sigmas", "--json", "-")
    assert status == 1
    assert "SCH-LEVEL-MISMATCH" in text
    status, text = audit(f"{source}:edm?convention=edm&order=2", "--nfe", 21, "--json", "-")
    assert status == 0, text
    assert json.loads(text)["nearest"]["name"] == "edm_heun"
    assert json.loads(text)["nfe"] == 21


def test_another_process_and_grid():
    status, text = audit("registry:tab3", "--process", "VPCosine", "--grid", "logrho", "--nfe", 8, "--json", "-")
    assert status == 0
    assert json.loads(text)["nearest"] == {"name": "tab3", "distance": 0.0}
    status, text = audit("k_diffusion:sample_euler", "--grid", "t2")
    assert status == 2
    assert "brings its own" in text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tab3", "must look like registry:tab3"),
        ("registry:tab33", "name='tab33' is unknown; nearest: tab3"),
        ("registry:tab3?x=1", "registry rows take no options"),
        ("numbers:x", "source 'numbers' is unknown"),
        ("nowhere/file.py:f", "there is no file"),
        ("{source}:nothing", "has no function 'nothing'"),
        ("{source}:euler?convention=sigma", "convention='sigma' is unknown; nearest: sigmas"),
    ],
)
def test_bad_specs_are_sentences(spec, message, source):
    status, text = audit(spec.format(source=source))
    assert status == 2
    assert message in " ".join(text.replace("│", " ").split())
    assert "Traceback" not in text


def test_sweep_gives_one_overview(monkeypatch):
    import deis_analysis.audit as package

    monkeypatch.setattr(package, "catalogue", lambda source: ["registry:ddim", "registry:nonsense"])
    status, text = audit("--all", "registry", "--json", "-")
    rows = json.loads(text)
    assert status == 0
    assert rows[0]["nearest"]["distance"] < 1e-12
    assert "unknown" in rows[1]["error"]
    assert audit()[0] == 2


# -- the page -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def report():
    return audited("registry:dpmpp_3m")


def test_the_page_is_self_contained(report):
    text = page(report)
    assert text.count("<svg") == 2
    for finding in report.findings:
        assert finding.code in text
    for outside in ("http://", "https://", "src=", "@import", "<script"):
        assert outside not in text
    odd = da.audit_sampler(Sampler(crashes))
    assert "RUN-FAILED" in page(odd)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser at hand")
def test_the_page_opens_in_a_browser(report, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(report))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert "Audit of" in done.stdout
    assert done.stdout.count("<rect") > 20
    picture = tmp_path / "report.png"
    subprocess.run([*command, f"--screenshot={picture}", file.as_uri()], capture_output=True, timeout=120)
    assert picture.stat().st_size > 5000


# What a reader does: a word in the filter, a severity, a click on a heading twice; what is then shown, in its order.
READER = """<script>
const shown = () => rows.filter(row => !row.hidden).map(row => row.cells[0].dataset.key);
const found = {all: shown()};
const give = (field, text) => { field.value = text; field.dispatchEvent(new Event("input")); };
give(filter, "tab1 Registry"); found.words = shown(); give(filter, "");
give(worst, "error"); found.worst = shown(); give(worst, "");
const heading = document.querySelectorAll("th button")[2];
heading.click(); found.up = shown(); heading.click(); found.down = shown();
found.count = count.textContent;
found.ordered = [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].dataset.key);
document.body.insertAdjacentHTML("beforeend", '<pre id="found">' + JSON.stringify(found) + "</pre>");
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser at hand")
def test_the_overview_sorts_and_filters_in_a_browser(tmp_path):
    reports = [
        da.audit_sampler(Sampler(crashes)),
        *(audited(f"registry:{n}") for n in ("dpmpp_3m_exact", "ddim", "tab1")),
    ]
    text = overview(reports, [f"{i}.html" for i in range(4)])
    file = tmp_path / "index.html"
    file.write_text(text.replace("</body>", READER + "</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(unescape(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)[-1]))
    failed, third, first, second = (report.spec for report in reports)
    assert found["all"] == [failed, third, first, second]
    assert found["words"] == [second]
    assert found["worst"] == [failed]
    assert found["up"] == [first, second, third, failed]  # no order stands last, up and down
    assert found["down"] == [third, second, first, failed] == found["ordered"]
    assert found["count"] == "4 of 4"


def test_codes_have_one_sentence_each():
    assert all(text and text[0].islower() for text in CODES.values())
    with pytest.raises(ValueError, match="not of the vocabulary"):
        Finding("XXX", "error", "")
    assert subject_of("registry:tab3").declared_order == 4


# -- the pytest plugin ----------------------------------------------------------------------------
MAINTAINERS_TEST = """
from samplers import euler, late, wasteful

def test_good(sampler_audit):
    sampler_audit.assert_order(euler, 1, convention="sigmas")
    sampler_audit.assert_exact_on_constants(euler, convention="sigmas")
    sampler_audit.assert_no_wasted_calls(euler, convention="sigmas")

def test_bad_order(sampler_audit):
    sampler_audit.assert_order(euler, 2, convention="sigmas")

def test_bad_level(sampler_audit):
    sampler_audit.assert_exact_on_constants(late, convention="sigmas")

def test_bad_call(sampler_audit):
    sampler_audit.assert_no_wasted_calls(wasteful, convention="sigmas")
"""


def test_the_plugin_in_a_maintainers_test(pytester, source):
    """As a package's maintainers use it: a fixture that is simply there, three lines, failures in one sentence."""
    wasteful = "\ndef wasteful(model, x, sigmas):\n    model(x, sigmas[0])\n    return euler(model, x, sigmas)\n"
    pytester.makepyfile(samplers=SOURCE + wasteful, test_samplers=MAINTAINERS_TEST)
    pytester.syspathinsert()
    done = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done.assert_outcomes(passed=1, failed=3)
    said = done.stdout.str()
    assert "expected 2" in said
    assert "SCH-LEVEL-MISMATCH" in said
    assert "NFE-WASTED" in said
    assert "Traceback" not in said
