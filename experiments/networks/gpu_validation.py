"""Does it hold, and how fast is it, on this device? Certificate, path errors of many samples, throughput, overhead.

On a GPU: ``python -m experiments run gpu_validation --thorough --device cuda``, with ``--model`` for a network of
your own. On the CPU it runs small, which shows that it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array
from deis_analysis.storage import atomic
from experiments import Config, Frame, Progress
from experiments.core import style
from experiments.core.paths import FIGURES
from experiments.models import studies
from experiments.models.problems import bootstrap_ratio, noise, start_scale, steps_for
from experiments.models.studies import Study

if TYPE_CHECKING:
    from deis_analysis.networks import Network
    from deis_analysis.reference.flow import ReferencePath

NAME = "gpu_validation"
QUESTION = "Certificate, path errors, images per second, and the overhead of `run`: what does this device give?"
NEEDS_CUDA = True  # times and rates are of a device; on a CPU it is run by its name
CONFIG: Config = {
    **studies.BASE,
    "models": ["digits8"],
    "network_samples": 4,
    "network_rtol": 1e-5,
    "network_tolerance": 1e-3,
    "many": 64,
    "batch": 64,
    "solvers": {"ddim": "rho7", "tab3": "t2", "rhoab3": "rho7", "dpmpp_2m": "logrho", "unipc3_bh2_x0": "logrho",
                "edm_heun": "rho7"},
    "calls": [5, 10, 20],
    "truth_steps": 25,
    "timed": ["float32"],
    "timed_batches": [16, 64],
    "timed_calls": 10,
    "repeats": 5,
    "choices": {
        "many": "their truth is ρ4RK with 4 × truth_steps calls in float32, itself compared with the certified samples",
        "throughput": "tab3, t2 grid, timed_calls calls, after one run to warm up; median of repeats",
        "overhead": "seconds of run over those of as many bare calls of the network right after; median of repeats",
        "compiled": "torch.compile; graphs: torch.compile(mode='reduce-overhead'), CUDA graphs; on CUDA only",
        "float32": "without TF32",
        "bare": "the network as a model: with its time, and casts, but without a table",
        "floors": "the sample of tab3 at 20 calls with the network in this dtype against the network in float64",
    },
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "samples": 8, "many": 32, "batch": 16, "calls": [5, 10], "timed_batches": [16],
                 "repeats": 1}  # fmt: skip
THOROUGH: Config = {"models": ["mnist28"], "samples": 64, "network_samples": 64, "network_rtol": 3e-7,
                    "network_tolerance": 3e-4, "truth_steps": 50, "many": 50_000, "batch": 2048,
                    "timed": ["float32", "bfloat16"], "timed_batches": [64, 1024],
                    "repeats": 5}  # fmt: skip
_FLOOR_CALLS, _DRAWS = 20, 400


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of parts "certificate", "work" (solver, calls), "throughput" and "overhead" (dtype, mode), "floor"."""
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"]):
        study = studies.on_its_own_process(name, config)
        assert study.network is not None
        begin = time.perf_counter()
        found = studies.network_path(study.network, study.process, study.x_T, _ends(study), config, [])
        took = time.perf_counter() - begin
        parts = (_certificate(study, found, took), _speed(study, config), _floors(study),
                 _work(study, found.states[-1], config))  # fmt: skip
        for i, part in enumerate(parts, 1):
            for row in part:
                rows.append({"model": name, **row})
                _keep(rows)
            progress((done + i / len(parts)) / len(config["models"]))
    return pd.DataFrame(rows)


def _keep(rows: list[dict[str, Any]]) -> None:
    """What is there so far, for a run that is killed: figures/.cache/gpu_validation.csv."""
    with atomic(FIGURES / ".cache" / f"{NAME}.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


# -- how exact ------------------------------------------------------------------------------------
def _ends(study: Study) -> tuple[float, float]:
    config = dict(study.config)
    return config["t_start"], config["t_end"]


def _certificate(study: Study, found: ReferencePath, took: float) -> Iterator[dict[str, Any]]:
    yield {"part": "certificate", "samples": len(study.x_T), "rms": found.error_estimate, "agreement": found.agreement,
           "nfe": found.nfe, "certified": found.certified, "seconds": took,
           "title": study.title}  # fmt: skip


def in_batches(study: Study, table: da.Tableau, starts: Array, batch: int) -> Any:
    """(n, d) samples from NumPy starts, by parts of at most ``batch``, float32 on the study's device."""
    import torch

    parts = [torch.tensor(part, dtype=torch.float32, device=study.x_T.device)
             for part in np.split(starts, range(batch, len(starts), batch))]  # fmt: skip
    return torch.cat([da.run(table, study.model, part) for part in parts])


def _work(study: Study, exact: Any, config: Config) -> Iterator[dict[str, Any]]:
    """Path errors of many samples; first of all, that of their truth on the certified samples."""
    process = study.process
    table = da.build("rhork_4rk", process, da.grid(process, config["truth_steps"], "logrho"))
    gap = in_batches(study, table, study.x_T.cpu().numpy(), config["batch"]) - exact
    yield {"part": "truth", "samples": len(exact), "nfe": table.nfe, "rms": float((gap.double() ** 2).mean() ** 0.5)}
    scale = start_scale(process, _ends(study)[0])
    starts = scale * noise(config["many"], study.x_T.shape[1], config["seed"] + 1)
    truth = in_batches(study, table, starts, config["batch"])
    for solver, kind in config["solvers"].items():
        for calls in config["calls"]:
            steps = steps_for(solver, calls)
            if steps == 0:
                continue
            table = da.build(solver, process, da.grid(process, steps, kind)).in_terms_of(process, "eps")
            gap = in_batches(study, table, starts, config["batch"]) - truth
            squares = np.asarray((gap.double() ** 2).mean(dim=1).cpu())
            low, high = bootstrap_ratio(squares, np.ones_like(squares), config["seed"], _DRAWS)
            yield {"part": "work", "solver": solver, "grid": kind, "calls": calls, "nfe": table.nfe,
                   "samples": len(starts), "rms": float(squares.mean()) ** 0.5, "low": low, "high": high}  # fmt: skip


def _floors(study: Study) -> Iterator[dict[str, Any]]:
    """How far the samples of a network in float32 and in bf16 are from those of the same network in float64."""
    import torch

    assert study.network is not None
    process = study.process
    table = da.build("tab3", process, da.grid(process, _FLOOR_CALLS, "t2"))
    samples = {
        dtype: da.run(table, studies.flat(study.network.to(dtype=dtype), process), study.x_T)
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    }
    for dtype, x in samples.items():
        if dtype != torch.float64:
            gap = (x - samples[torch.float64]).abs()
            yield {"part": "floor", "dtype": str(dtype).removeprefix("torch."), "nfe": table.nfe,
                   "samples": len(gap), "rms": float((gap**2).mean() ** 0.5), "largest": float(gap.max())}  # fmt: skip


# -- how fast -------------------------------------------------------------------------------------
def _modes(device: Any) -> tuple[str, ...]:
    return ("eager", "compiled", "graphs") if device.type == "cuda" else ("eager",)


def _called(net: Network, mode: str) -> Callable[[Any, float], Any]:
    """The network's own prediction under a mode of execution."""
    import torch

    from deis_analysis.networks import ImageModel

    if mode == "eager":
        return net.model
    torch.compiler.reset()  # else the 9th graph of one forward(), over all dtypes and modes, is silently not compiled
    how = "reduce-overhead" if mode == "graphs" else "default"
    compiled: Any = torch.compile(net.model.net, mode=how, dynamic=False)

    class Kept(torch.nn.Module):
        """Answers that the next replay of a CUDA graph does not overwrite: a table keeps several."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net.model.net

        def forward(self, x: Any, t: Any, return_dict: bool = False) -> tuple[Any, ...]:
            torch.compiler.cudagraph_mark_step_begin()
            return (compiled(x, t, return_dict=return_dict)[0].clone(),)

    return ImageModel(Kept() if mode == "graphs" else compiled, net.process, net.model.convention)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(action: Callable[[], Any], device: Any) -> float:
    _wait(device)
    begin = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - begin


def _speed(study: Study, config: Config) -> Iterator[dict[str, Any]]:
    """Images per second of tab3, and how much longer `run` takes than the network calls in it."""
    import torch

    assert study.network is not None
    device, process = study.x_T.device, study.process
    table = da.build("tab3", process, da.grid(process, config["timed_calls"], "t2"))
    table = table.in_terms_of(process, study.network.prediction)
    for dtype in config["timed"]:
        net = study.network.to(dtype=getattr(torch, dtype))
        for mode in _modes(device):
            model = _called(net, mode)
            for batch in config["timed_batches"]:
                x = torch.randn(batch, *net.shape, device=device, generator=torch.Generator(device).manual_seed(0))

                def sample(model: Any = model, x: Any = x) -> None:
                    da.run(table, model, x)

                def bare(model: Any = model, x: Any = x) -> None:
                    for t in table.times[: table.nfe]:
                        model(x, float(t))

                with torch.no_grad():
                    sample()
                    bare()
                    pairs = [(_seconds(sample, device), _seconds(bare, device)) for _ in range(config["repeats"])]
                ratios = [whole / calls for whole, calls in pairs]
                yield {"part": "speed", "dtype": dtype, "mode": mode, "batch": batch, "nfe": table.nfe,
                       "images_per_second": batch / float(np.median([whole for whole, _ in pairs])),
                       "overhead": float(np.median(ratios)), "low": min(ratios), "high": max(ratios)}  # fmt: skip


# -- what was found -------------------------------------------------------------------------------
def findings(frame: Frame, model: str) -> dict[str, Any]:
    """The rows that verdict and headline state."""
    rows = frame[frame.model == model]
    speed = rows[rows.part == "speed"]
    work = rows[rows.part == "work"]
    at = work[work.calls == sorted(work.calls.unique())[len(work.calls.unique()) // 2]].sort_values("rms")
    return {
        "certificate": rows[rows.part == "certificate"].iloc[0],
        "truth": rows[rows.part == "truth"].iloc[0],
        "first": at.iloc[0],
        "fastest": speed.loc[speed.images_per_second.idxmax()],
        "overhead": overhead(speed),
        "floors": rows[rows.part == "floor"].set_index("dtype").rms,
    }


def overhead(speed: Frame) -> str:
    """What `run` costs beside the network calls in it, in words; nothing, where repeats lie on both sides of 1."""
    beyond = speed[(speed.low > 1) | (speed.high < 1)].overhead
    if beyond.empty:
        largest = max(1 - speed.low.min(), speed.high.max() - 1)
        return f"what run adds to its calls is within the spread of repeats ({100 * largest:.0f} %)"
    return f"run takes {speed.overhead.min():.2f} to {speed.overhead.max():.2f} times the bare calls"


def verdict(frame: Frame, config: Config) -> str:
    """Per network: certificate, the most accurate solver of many samples, the highest throughput, the floors."""
    parts, text = [], style.as_text
    for name in config["models"]:
        f = findings(frame, name)
        sure = "certified" if bool(f["certificate"].certified) else "not certified"
        parts.append(
            f"{name} on {config['device']}: {sure}, two methods agree to {text(f['certificate'].agreement, 1)}; of "
            f"{f['first'].samples:.0f} samples at {f['first'].calls:.0f} calls {f['first'].solver} is nearest (RMS "
            f"{text(f['first'].rms)}); tab3 with {f['fastest'].nfe:.0f} calls makes at most "
            f"{f['fastest'].images_per_second:.0f} images/s ({f['fastest']['dtype']}, {f['fastest']['mode']}, batch "
            f"{f['fastest'].batch:.0f}); {f['overhead']}; "
            f"floors: {', '.join(f'{kind} {text(v, 1)}' for kind, v in f['floors'].items())}"
        )
    return "; ".join(parts) + "."


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: networks. Path error of many samples with the floors; images per second; overhead of `run`."""
    f = findings(frame, config["models"][0])
    headline = (
        f"{config['models'][0]} on {config['device']}: {f['fastest'].images_per_second:.0f} images/s at "
        f"{f['fastest'].nfe:.0f} calls; {f['overhead']}"
    )
    note = (
        f"Path error of {f['first'].samples:.0f} samples against ρ4RK with {f['truth'].nfe:.0f} calls, which is "
        f"{style.as_text(f['truth'].rms, 1)} from the {f['certificate'].samples:.0f} certified samples; 95 % bands. "
        "Horizontal lines: the network in that dtype against float64. Speed: medians, run and bare calls alternating; "
        "bars: from the least to the largest ratio of a repeat."
    )
    count = len(config["models"])
    fig = style.new_figure(13.5, 1.4 + 3.6 * count, headline, note)
    axes = fig.subplots(count, 3, squeeze=False, gridspec_kw={**style.body(fig), "wspace": 0.75, "hspace": 0.35})
    for row, name in zip(axes, config["models"], strict=True):
        part = frame[frame.model == name]
        _errors(row[0], part, config)
        for ax, value, label in ((row[1], "images_per_second", "images per second"),
                                 (row[2], "overhead", "run / bare network calls")):  # fmt: skip
            _speeds(ax, part[part.part == "speed"], value, label)
        row[0].set_title(name)
    return fig


def _errors(ax: Any, rows: Frame, config: Config) -> None:
    ends = []
    for solver, part in rows[rows.part == "work"].groupby("solver", sort=False):
        look = style.look(str(solver))
        ax.fill_between(part.nfe, part.low, part.high, color=look["color"], alpha=0.1, lw=0)
        ax.plot(part.nfe, part.rms, **look)
        ends.append((part.nfe.iloc[-1], part.rms.iloc[-1], str(solver), look["color"]))
    ax.set(xscale="log", yscale="log", xlabel="model calls (NFE)", ylabel="RMS error per pixel")
    style.plain_log_ticks(ax.xaxis, config["calls"])
    for _, floor in rows[rows.part == "floor"].iterrows():
        ax.axhline(floor.rms, color=style.GREY, lw=1.0, ls=":")
        ax.annotate(str(floor["dtype"]), (0.02, floor.rms), xycoords=("axes fraction", "data"), fontsize=8.5,
                    va="bottom", color="#555555")  # fmt: skip
    style.end_labels(ax, ends, 8.5)


def _speeds(ax: Any, rows: Frame, value: str, label: str) -> None:
    colours = {"eager": style.BLACK, "compiled": style.BLUE, "graphs": style.VERMILLION}
    for (dtype, mode), part in rows.groupby(["dtype", "mode"], sort=False):
        line = "-" if dtype == "float32" else "--"
        ax.plot(part.batch, part[value], line, marker="o", color=colours[str(mode)], label=f"{dtype}, {mode}")
        if value == "overhead":
            ax.vlines(part.batch, part.low, part.high, color=colours[str(mode)], lw=1.0)
    ax.set(xscale="log", xlabel="batch", ylabel=label)
    style.plain_log_ticks(ax.xaxis, sorted(rows.batch.unique()))
    if value == "overhead":
        ax.axhline(1.0, color=style.GREY, lw=1.0)
    else:
        if rows[value].max() > 10 * rows[value].min():
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, 1.15 * rows[value].max())
        ax.legend(fontsize=8.5, loc="lower right")
