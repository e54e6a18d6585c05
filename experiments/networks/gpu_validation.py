"""Does it hold, and how fast is it, on this device? Certificate, path errors of many samples, throughput, overhead.

On a GPU: ``python -m experiments run gpu_validation --thorough --device cuda``, with ``--model`` for a network of
your own. On the CPU it runs small, which shows that it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import deis_analysis as da
from deis_analysis.process.process import Array, Process
from deis_analysis.storage import atomic
from experiments import Config, Frame, Progress
from experiments.core import cells, panels, style
from experiments.core.frames import at
from experiments.core.judging import error_row
from experiments.core.paths import FIGURES
from experiments.models import studies
from experiments.models.problems import noise, start_scale
from experiments.models.studies import Study

if TYPE_CHECKING:
    from deis_analysis.networks import Network

NAME = "gpu_validation"
QUESTION = "Certificate, path errors, images per second, and the overhead of `run`: what does this device give?"
NEEDS_CUDA = True  # times and rates are of a device; on a CPU it is run by its name
CONFIG: Config = {
    **studies.BASE, "models": ["digits8"], "network_samples": 4, "network_rtol": 1e-5, "network_tolerance": 1e-3,
    "many": 64, "batch": 64, "calls": [5, 10, 20], "truth_steps": 25, "solvers": cells.CUSTOMARY,
    "timed": ["float32"], "timed_batches": [16, 64], "timed_calls": 10, "repeats": 5,
    "choices": {"speed": "tab3, t2 grid, after one run to warm up; medians of repeats, each beside as many bare calls"},
}  # fmt: skip
QUICK: Config = {**studies.BASE_QUICK, "samples": 8, "many": 32, "batch": 16, "calls": [5, 10], "timed_batches": [16],
                 "repeats": 1}  # fmt: skip
THOROUGH: Config = {"models": ["mnist28"], "network_samples": 64, "network_rtol": 3e-7, "network_tolerance": 3e-4,
                    "truth_steps": 50, "many": 50_000, "batch": 2048, "timed": ["float32", "bfloat16"],
                    "timed_batches": [64, 1024]}  # fmt: skip
Rows = Iterator[dict[str, Any]]


def compute(config: Config, progress: Progress) -> Frame:
    """Rows of parts "certificate", "speed" (dtype, mode, batch), "floor" (dtype), "truth" and "work" (solver, calls).

    A run that is killed leaves those that it has in figures/.cache/gpu_validation.csv.
    """
    rows: list[dict[str, Any]] = []
    for done, name in enumerate(config["models"], 1):
        study = studies.on_its_own_process(name, config)
        assert study.network is not None
        for row in _measured(study, study.network, config):
            rows.append({"model": name, **row})
            with atomic(FIGURES / ".cache" / f"{NAME}.csv") as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
        progress(done / len(config["models"]))
    return pd.DataFrame(rows)


def _measured(study: Study, net: Network, config: Config) -> Rows:
    begin = time.perf_counter()
    found = studies.network_path(net, study.process, study.x_T, study.process.sampling_range, config, [])
    yield {"part": "certificate", "samples": len(study.x_T), "rms": found.error_estimate, "agreement": found.agreement,
           "nfe": found.nfe, "certified": found.certified, "seconds": time.perf_counter() - begin}  # fmt: skip
    yield from _speed(net, study.process, config)
    yield from _floors(study, net)
    yield from _work(study, found.states[-1], config)


# -- how exact ------------------------------------------------------------------------------------
def in_batches(study: Study, table: da.Tableau, starts: Array, batch: int) -> Any:
    """(n, d) samples from NumPy starts, by parts of at most ``batch``, float32 on the study's device."""
    import torch

    parts = torch.tensor(starts, dtype=torch.float32).split(batch)
    return torch.cat([da.run(table, study.model, part.to(study.x_T.device)) for part in parts])


def _work(study: Study, exact: Any, config: Config) -> Rows:
    """Path errors of many samples; first of all, that of their truth on the certified samples."""
    process, batch = study.process, config["batch"]
    table = da.build("rhork_4rk", process, da.grid(process, config["truth_steps"], "logrho"))
    gap = in_batches(study, table, study.x_T.cpu().numpy(), batch) - exact
    yield {"part": "truth", "samples": len(exact), "nfe": table.nfe, "rms": float((gap.double() ** 2).mean() ** 0.5)}
    scale = start_scale(process, process.sampling_range[0])
    starts = scale * noise(config["many"], study.x_T.shape[1], config["seed"] + 1)
    truth = in_batches(study, table, starts, batch)
    for cell in cells.plan(study, config["solvers"], cells.each_on(config["solvers"]), config["calls"]):
        table = da.build(cell.solver, process, np.array(cell.times)).in_terms_of(process, "eps")
        gap = in_batches(study, table, starts, batch) - truth
        squares = np.asarray((gap.double() ** 2).mean(dim=1).cpu())
        yield {"part": "work", **cell.columns, "samples": len(starts), **error_row(squares, config["seed"])}


def _floors(study: Study, net: Network) -> Rows:
    """How far the samples of a network in float32 and in bf16 are from those of the same network in float64."""
    import torch

    table = da.build("tab3", study.process, da.grid(study.process, 20, "t2"))
    ends = {dtype: da.run(table, studies.flat(net.to(dtype=getattr(torch, dtype)), study.process), study.x_T)
            for dtype in ("float64", "float32", "bfloat16")}  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        gap = (ends[dtype] - ends["float64"]).abs()
        yield {"part": "floor", "dtype": dtype, "nfe": table.nfe, "samples": len(gap),
               "rms": float((gap**2).mean() ** 0.5), "largest": float(gap.max())}  # fmt: skip


# -- how fast -------------------------------------------------------------------------------------
def _called(net: Network, mode: str) -> Callable[[Any, float], Any]:
    """The network's own prediction under a mode of execution; "graphs" are CUDA graphs."""
    import torch

    from deis_analysis.networks import ImageModel

    if mode == "eager":
        return net.model
    torch.compiler.reset()  # else the 9th graph of one forward(), over all dtypes and modes, is silently not compiled
    how = "reduce-overhead" if mode == "graphs" else "default"
    compiled: Any = torch.compile(net.model.net, mode=how, dynamic=False)
    model = ImageModel(compiled, net.process, net.model.convention)

    def kept(x: Any, t: float) -> Any:  # the next replay of a CUDA graph overwrites an answer; a table keeps several
        torch.compiler.cudagraph_mark_step_begin()
        return model(x, t).clone()

    return kept if mode == "graphs" else model


def _seconds(action: Callable[[], Any], device: Any) -> float:
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    begin = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - begin


def _speed(net: Network, process: Process, config: Config) -> Rows:
    """Images per second of tab3, and how much longer `run` takes than the network calls in it."""
    import torch

    device = torch.device(config["device"])
    table = da.build("tab3", process, da.grid(process, config["timed_calls"], "t2"))
    table = table.in_terms_of(process, net.prediction)
    modes = ("eager", "compiled", "graphs") if device.type == "cuda" else ("eager",)

    def bare(model: Any, x: Any) -> None:
        for t in table.times[: table.nfe]:
            model(x, float(t))

    for dtype, mode in product(config["timed"], modes):
        model = _called(net.to(dtype=getattr(torch, dtype)), mode)
        for batch in config["timed_batches"]:
            x = torch.randn(batch, *net.shape, device=device, generator=torch.Generator(device).manual_seed(0))
            actions = partial(da.run, table, model, x), partial(bare, model, x)
            with torch.no_grad():  # the first of all repeats is to warm up
                seconds = np.array([[_seconds(action, device) for action in actions]
                                    for _ in range(1 + config["repeats"])])[1:]  # fmt: skip
            ratios = seconds[:, 0] / seconds[:, 1]
            yield {"part": "speed", "dtype": dtype, "mode": mode, "batch": batch, "nfe": table.nfe,
                   "images_per_second": batch / float(np.median(seconds[:, 0])), "overhead": float(np.median(ratios)),
                   "low": float(ratios.min()), "high": float(ratios.max())}  # fmt: skip


# -- what was found -------------------------------------------------------------------------------
def overhead(speed: Frame) -> str:
    """What `run` costs beside the network calls in it, in words; nothing, where repeats lie on both sides of 1."""
    beyond = speed[(speed.low > 1) | (speed.high < 1)].overhead
    if beyond.empty:
        largest = max(1 - speed.low.min(), speed.high.max() - 1)
        return f"what run adds to its calls is within the spread of repeats ({100 * largest:.0f} %)"
    return f"run takes {speed.overhead.min():.2f} to {speed.overhead.max():.2f} times the bare calls"


def _headline(rows: Frame, config: Config) -> str:
    speed = at(rows, part="speed")
    best = speed.loc[speed.images_per_second.idxmax()]
    return (
        f"{best.model} on {config['device']}: {best.images_per_second:.0f} images/s at {best.nfe:.0f} calls "
        f"({best['dtype']}, {best['mode']}, batch {best.batch:.0f})"
    )


def verdict(frame: Frame, config: Config) -> str:
    """Per network: the highest throughput, overhead, certificate, and the most accurate solver of many samples."""
    parts = []
    for _, rows in frame.groupby("model", sort=False):
        sure, work = at(rows, part="certificate").iloc[0], at(rows, part="work")
        first = at(work, calls=sorted(config["calls"])[len(config["calls"]) // 2]).sort_values("rms").iloc[0]
        parts.append(
            f"{_headline(rows, config)}; {overhead(at(rows, part='speed'))}; {'' if sure.certified else 'not '}"
            f"certified, two methods agree to {style.as_text(sure.agreement, 1)}; of {first.samples:.0f} samples at "
            f"{first.calls:.0f} calls {first.solver} is nearest (RMS {style.as_text(first.rms)})"
        )
    return "; ".join(parts) + "."


def draw(frame: Frame, config: Config) -> Figure:
    """Rows: networks. Path error of many samples, with the floors; images per second."""
    models, truth = config["models"], at(frame, part="truth").iloc[0]
    note = (
        f"Left: RMS error per pixel of {config['many']} samples against ρ4RK with {truth.nfe:.0f} calls, which is "
        f"{style.as_text(truth.rms, 1)} from {truth.samples:.0f} certified ones; 95 % bands; dotted: the network in "
        f"that dtype against float64. Right: images per second at {config['timed_calls']} calls, medians of repeats."
    )
    fig = panels.sheet(_headline(at(frame, model=models[0]), config), note, 0.9 + 2.0 * len(models))
    errors = panels.lines(fig, at(frame, part="work"), {name: f"{name}: error" for name in models}, 1, x="nfe", y="rms",
                          band=("low", "high"), right=3.9)  # fmt: skip
    colours = {"eager": style.BLACK, "compiled": style.BLUE, "graphs": style.VERMILLION}
    looks = {f"{dtype}, {mode}": {"color": colour, "marker": "o", "linestyle": "-" if dtype == "float32" else "--"}
             for dtype, (mode, colour) in product(config["timed"], colours.items())}  # fmt: skip
    speed = at(frame, part="speed").assign(how=lambda rows: rows["dtype"] + ", " + rows["mode"])
    rates = panels.lines(fig, speed, dict.fromkeys(models, "images per second"), 1, x="batch", y="images_per_second",
                         line="how", look=looks.__getitem__, xlabel="batch", legend=False, left=3.8, right=1.4,
                         extra_top=0.5)  # fmt: skip
    style.plain_log_ticks(rates[0].yaxis, [digit * 10**power for power in range(7) for digit in (1, 2, 5)])
    rates[0].legend(fontsize=panels.TICKS, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for ax, name in zip(errors, models, strict=True):
        for floor in at(frame, part="floor", model=name).itertuples():
            ax.axhline(floor.rms, color=style.GREY, lw=1.0, ls=":")
            ax.annotate(floor.dtype, (0.02, floor.rms), xycoords=("axes fraction", "data"), fontsize=panels.SMALL)
    return fig
