"""How does a result come to be, once and whole? Fingerprints, atomic files, processes, interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import deis_analysis
from deis_analysis.storage import atomic, module_of, read_text, write_text
from experiments import Config, Experiment, Frame, Progress, discover
from experiments.core.agreement import as_written, changed_settings, differences
from experiments.core.paths import CHECKPOINTS, FIGURES, without_tf32
from experiments.core.side_by_side import spare
from experiments.core.sources import depends_on, installed
from experiments.core.units import Incomplete

SUFFIXES = ("csv", "png", "svg", "json")
DIFFERS = ".differs"  # folder, beside the committed results, of what was computed and does not agree with them
UNDRAWN = ".undrawn"  # folder, beside the results, of what was computed and could not be drawn
VERSIONED = ("numpy", "scipy", "torch", "matplotlib", "pandas", "scikit-learn")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin cost a busy machine a factor of six
PRELOADED = ["experiments.__main__", "experiments.core.style", "torch", "scipy.stats", "sklearn.datasets", "sympy"]
PRELOADED += ["diffusers.models.unets.unet_2d"]  # what is not installed is passed over
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One experiment to be run: where to and on what.

    Attributes:
        reproduce: the files that are there stay where what is computed agrees with them. strict: they stay, too, where
            it does not, and what was computed goes to the folder `DIFFERS`.
    """

    name: str
    folder: Path
    quick: bool = False
    device: str = "cpu"
    thorough: bool = False
    models: tuple[str, ...] = ()
    allow_pickle: bool = False
    dtype: str | None = None
    networks: bool = False
    imports: tuple[Path, ...] = ()
    solvers: tuple[str, ...] = ()
    reproduce: bool = False
    strict: bool = False

    @property
    def files(self) -> str:
        """What its files are called: those of a GPU, a dtype, chosen models stand beside those of the default ones."""
        place = [] if self.device == "cpu" else [self.device.replace(":", "")]
        place += [] if self.dtype is None else [self.dtype]
        asked = (*self.models, *self.solvers)
        return "-".join((self.name, *place, *(re.sub(r"[^\w.-]+", "_", name).strip("_.") for name in asked)))


@dataclass(frozen=True)
class Outcome:
    """How one experiment ended; ``text`` is the verdict, the error, or what differs.

    ``status`` is "done", "kept" or "failed", and of a reproduction "agrees", "redrawn" (from committed numbers, which
    are not computed here), "written" (nothing was committed) or "differs". "waits": units of other shares are missing.
    """

    name: str
    status: str
    text: str
    seconds: float


# -- what was asked for ---------------------------------------------------------------------------
def configuration(experiment: Experiment, task: Task) -> Config:
    """The experiment's configuration for a task; ``device`` is in it if the experiment has one."""
    config = {**experiment.CONFIG, **(experiment.QUICK if task.quick else {})}
    if task.thorough:
        config |= getattr(experiment, "THOROUGH", {})
    if "device" in config:
        config["device"] = task.device
    if task.models:
        if not takes(experiment, task.models):
            raise ValueError(f"{task.name} cannot be run on {', '.join(task.models)}; allowed: {allowed(experiment)}")
        config["models"] = list(task.models)
        if task.allow_pickle:
            config["allow_pickle"] = True
    if task.solvers:
        _add_solvers(config, task)
    if "kept" in config and (task.networks or task.models or task.dtype):
        config["kept"] = []
    if task.dtype:
        if "network_dtype" not in config:
            raise ValueError(f"{task.name} has no network_dtype; allowed: no --dtype")
        config["network_dtype"] = task.dtype
    return dict(config)


def _add_solvers(config: Config, task: Task) -> None:
    """Let further registry samplers take part, each beside its grid where the experiment gives one to each."""
    import deis_analysis as da

    key = solvers_key(config)
    if key is None:
        raise ValueError(f"{task.name} has a list of samplers of its own; allowed: no --solver")
    known = dict(config[key]) if isinstance(config[key], dict) else list(config[key])
    for text in task.solvers:
        name, _, kind = text.partition(":")
        if name not in da.SOLVERS:
            raise ValueError(f"solver={name!r} is not in the registry; --import a file that registers it")
        if isinstance(known, dict):
            known[name] = kind or "t2"
        elif name not in known:
            known.append(name)
    config[key] = known
    config["imports"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in task.imports}


def solvers_key(config: Config) -> str | None:
    """Where a configuration lists its samplers, None if it does not."""
    return next((key for key in ("customary", "solvers") if isinstance(config.get(key), list | dict)), None)


def sweeps(experiment: Experiment) -> bool:
    """Whether its numbers come from `cells.sweep`, whose units an engine can do."""
    return "experiments.core.cells" in installed().reached(experiment.__name__)


def bring(files: Iterable[Path]) -> None:
    """Run files of the user's, which register samplers, once in a process."""
    for path in files:
        place = str(path.resolve())
        if place not in _BROUGHT:
            module_of(path)
            _BROUGHT.add(place)


_BROUGHT: set[str] = set()


def _known_models() -> Iterable[str]:
    from experiments.models.studies import MODELS  # which needs this module

    return MODELS


def takes(experiment: Experiment, names: tuple[str, ...]) -> bool:
    """Whether the experiment can be run on these models."""
    if names and "models" not in experiment.CONFIG:
        return False
    return getattr(experiment, "IMAGE_NETWORKS", True) or set(names) <= set(_known_models())


def allowed(experiment: Experiment) -> str:
    """What `takes` lets pass, for a message."""
    if "models" not in experiment.CONFIG:
        return "no --model"
    return "any model" if getattr(experiment, "IMAGE_NETWORKS", True) else ", ".join(_known_models())


def _weights(models: list[str]) -> bytes:
    """Hash of the files and folders among ``models``, shipped ones too; features are those of the twin, digits8."""
    digest, shipped = hashlib.sha256(), CHECKPOINTS
    for model in models:
        code = Path(model.rpartition(":")[0] or model)  # FILE.py:make
        place = next((place for place in (shipped / model, Path(model), code) if place.exists()), shipped / model)
        files = [place] if place.is_file() else [*place.rglob("*"), *(shipped / model.split("_")[0]).glob("features.*")]
        for file in sorted({path for path in files if path.is_file() and path.suffix != ".npz"}):  # no references
            digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()


def fingerprint(experiment: Experiment, config: Config) -> str:
    """Hash of all that a result depends on: configuration, device, weights, the code that the experiment reaches."""
    parts = [json.dumps(config, sort_keys=True).encode(), depends_on(experiment.__name__).encode()]
    return hashlib.sha256(b"\0".join([*parts, _weights(config.get("models", []))])).hexdigest()


# -- what is there --------------------------------------------------------------------------------
def result_files(name: str, folder: Path) -> list[Path]:
    """The four files of a result."""
    return [folder / f"{name}.{suffix}" for suffix in SUFFIXES]


def last_seconds(task: Task) -> float:
    """How long the experiment took when its result in ``figures/`` was made, 0 if that is not known."""
    try:
        return float(json.loads(read_text(FIGURES / f"{task.name}.json"))["wall_time_s"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def _marker(name: str, folder: Path) -> Path:
    return folder / ".done" / f"{name}.json"


def finished(experiment: Experiment, task: Task) -> dict[str, Any] | None:
    """The marker of a finished result for exactly this task, None if it is to be computed."""
    try:
        marker: dict[str, Any] = json.loads(read_text(_marker(task.files, task.folder)))
        whole = isinstance(marker["verdict"], str) and math.isfinite(marker["wall_time_s"])
    except (ValueError, KeyError, TypeError, RecursionError):  # none, or damaged
        return None
    paths = result_files(task.files, task.folder)
    if not whole or not all(path.is_file() for path in paths) or marker.get("csv") != _digest(paths[0]):
        return None
    return marker if marker.get("fingerprint") == fingerprint(experiment, configuration(experiment, task)) else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mark_finished(task: Task, mark: str, verdict: str, seconds: float) -> None:
    csv = _digest(result_files(task.files, task.folder)[0])
    done = {"fingerprint": mark, "csv": csv, "verdict": verdict, "wall_time_s": round(seconds, 2)}
    write_text(_marker(task.files, task.folder), json.dumps(done, ensure_ascii=False))


def _clean(folder: Path, pids: set[int]) -> None:
    for pid in pids:
        for leftover in folder.glob(f".*.{pid}.tmp"):
            leftover.unlink(missing_ok=True)


# -- making it ------------------------------------------------------------------------------------
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "deis_analysis": deis_analysis.__version__}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _device_name(config: Config) -> str:
    device = str(config.get("device", "cpu"))
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"
    return device


def _save_figure(figure: Any, path: Path, kind: str) -> None:
    import matplotlib.pyplot as plt

    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with atomic(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
    if kind == "svg":
        plt.close(figure)


def _write_data(name: str, folder: Path, text: str, record: dict[str, Any]) -> None:
    csv, _, _, info = result_files(name, folder)
    content = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    try:
        write_text(csv, text)
        write_text(info, content)
    except OSError as error:  # what was computed is worth more than its place
        kept = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        write_text(kept / csv.name, text)
        write_text(kept / info.name, content)
        error.add_note(f"what was computed is kept in {kept}")
        raise


def execute(task: Task, progress: Progress) -> Outcome:
    """Compute one experiment and write its files; nothing is touched unless the computation succeeds.

    Where the figure cannot be drawn, CSV and JSON are written to a folder of their own, for `redraw`.

    Verdict and figure are made from the CSV as written, so that they can be made from it again.
    """
    bring(task.imports)
    experiment = discover()[task.name]
    if task.reproduce and not task.quick and hasattr(experiment, "COMMITTED"):
        return _from_committed(experiment, task)
    config = configuration(experiment, task)
    without_tf32(task.device)
    mark = fingerprint(experiment, config)
    begin = time.perf_counter()
    try:
        frame = experiment.compute(config, progress)
    except Incomplete:
        return Outcome(task.name, "waits", _share(experiment, config, progress), time.perf_counter() - begin)
    text = frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    seconds = time.perf_counter() - begin
    record: dict[str, Any] = {
        "name": task.name,
        "question": experiment.QUESTION,
        "verdict": None,
        "config": config,
        "quick": task.quick,
        "thorough": task.thorough,
        "seed": config.get("seed"),
        "device": _device_name(config),
        "wall_time_s": round(seconds, 2),
        "versions": _versions(),
        "fingerprint": mark,
    }
    if not task.reproduce or not _is_there(task):
        sentence = _write(experiment, task, text, record)
        progress(1.0)
        return Outcome(task.name, "written" if task.reproduce else "done", sentence, seconds)
    found = _compare(experiment, task, text, config)
    progress(1.0)
    if not found:
        _draw_missing(experiment, task)
        sentence = str(_record(task)["verdict"])
        _mark_finished(task, mark, sentence, seconds)
        return Outcome(task.name, "agrees", _but_kept(config) + sentence, seconds)
    _write(experiment, replace(task, folder=task.folder / DIFFERS) if task.strict else task, text, record)
    return Outcome(task.name, "differs", "; ".join(found), seconds)


def _share(experiment: Experiment, config: Config, progress: Progress) -> str:
    """Do this process's share of the units of all models, which a first sweep that waits for others kept from."""
    done = missing = 0
    for model in config.get("models", [None]):
        try:
            experiment.compute(config if model is None else {**config, "models": [model]}, progress)
        except Incomplete as share:
            done, missing = done + share.done, missing + share.missing
    return f"this share is done; {done} of {done + missing} units of unfinished models are there, others do the rest"


def _write(experiment: Experiment, task: Task, text: str, record: dict[str, Any]) -> str:
    """Judge and draw a CSV, and write the four files and the marker; returns the verdict."""
    from experiments.core import style  # sets the look before any figure exists

    frame, config = as_written(text), record["config"]
    try:
        sentence = experiment.verdict(frame, config)
        style.plt.style.use(style.SHEET)
        figure = experiment.draw(frame, config)
    except Exception as error:
        _write_data(task.files, task.folder / UNDRAWN, text, record)
        error.add_note("what was computed is kept: `redraw` draws it")
        raise
    _marker(task.files, task.folder).unlink(missing_ok=True)
    _, png, svg, _ = result_files(task.files, task.folder)
    _write_data(task.files, task.folder, text, record | {"verdict": sentence})  # first: pictures can be drawn again
    _save_figure(figure, png, "png")
    _save_figure(figure, svg, "svg")
    for path in result_files(task.files, task.folder / UNDRAWN):
        path.unlink(missing_ok=True)
    _mark_finished(task, record["fingerprint"], sentence, record["wall_time_s"])
    return sentence


# -- made again -----------------------------------------------------------------------------------
def _is_there(task: Task) -> bool:
    csv, _, _, info = result_files(task.files, task.folder)
    return csv.is_file() and info.is_file()


def _record(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result_files(task.files, task.folder)[3].read_text(encoding="utf-8"))
    return found


def _compare(experiment: Experiment, task: Task, text: str, config: Config) -> list[str]:
    """What differs between the committed files and a computed CSV: settings, numbers, the sentence."""
    try:
        committed, record = as_written(read_text(result_files(task.files, task.folder)[0])), _record(task)
        _ = record["config"], record["verdict"]
    except Exception as error:  # the computed result is not lost to a broken one
        return [f"the committed files cannot be read ({type(error).__name__}: {error})"]
    found = changed_settings(record["config"], json.loads(json.dumps(config)))
    found += differences(committed, as_written(text), getattr(experiment, "TOLERANCES", None))
    return found or _other_sentence(experiment, committed, record)


def _other_sentence(experiment: Experiment, committed: Frame, record: dict[str, Any]) -> list[str]:
    """Whether the committed sentence is not the one that follows from the committed numbers: code that changed."""
    sentence = experiment.verdict(committed, record["config"])
    if sentence == record["verdict"]:
        return []
    return [f"the numbers agree, the sentence does not: committed {record['verdict']!r}, now {sentence!r}"]


def _but_kept(config: Config) -> str:
    """What of a result was not computed: rows of networks, which `by_model` takes from the committed file."""
    kept = [name for name in config.get("kept", ()) if name in config["models"]]
    return f"[rows of {', '.join(kept)} are the committed ones, which --networks computes] " if kept else ""


def _from_committed(experiment: Experiment, task: Task) -> Outcome:
    """An experiment that is not computed here: its sentence and figure can be made from the committed numbers."""
    from experiments.core import style

    how = experiment.COMMITTED  # type: ignore[attr-defined]
    if not _is_there(task):
        return Outcome(task.name, "failed", f"no numbers are committed, and they are not computed here: {how}", 0.0)
    begin, record = time.perf_counter(), _record(task)
    frame = as_written(result_files(task.files, task.folder)[0].read_text(encoding="utf-8"))
    style.plt.style.use(style.SHEET)
    style.plt.close(experiment.draw(frame, record["config"]))
    _draw_missing(experiment, task)
    found = changed_settings(record["config"], json.loads(json.dumps(configuration(experiment, task))))
    found = found or _other_sentence(experiment, frame, record)
    seconds = time.perf_counter() - begin
    if found:
        return Outcome(task.name, "differs", "; ".join(found), seconds)
    return Outcome(task.name, "redrawn", f"from the committed numbers ({how}): {record['verdict']}", seconds)


def _draw_missing(experiment: Experiment, task: Task) -> None:
    """PNG and SVG from the committed numbers, where they are not there."""
    from experiments.core import style

    csv, *pictures, _ = result_files(task.files, task.folder)
    if all(path.is_file() for path in pictures):
        return
    style.plt.style.use(style.SHEET)
    figure = experiment.draw(as_written(csv.read_text(encoding="utf-8")), _record(task)["config"])
    for path in pictures:
        if not path.is_file():
            _save_figure(figure, path, path.suffix[1:])
    style.plt.close(figure)


def redraw(task: Task) -> str:
    """Make the figure and the verdict again from the CSV and the recorded configuration; returns the verdict.

    What was computed last and could not be drawn comes first, and takes the place of the result before.
    """
    from experiments.core import style

    experiment = discover()[task.name]
    undrawn = result_files(task.files, task.folder / UNDRAWN)
    waits = undrawn[0].is_file() and undrawn[3].is_file()
    _, png, svg, _ = result_files(task.files, task.folder)
    csv, _, _, info = undrawn if waits else result_files(task.files, task.folder)
    if not (csv.is_file() and info.is_file()):
        raise FileNotFoundError(f"{csv.name} and {info.name} are not both in {csv.parent}: run {task.name} first")
    try:
        record, text = json.loads(read_text(info)), read_text(csv)
        frame = as_written(text)
        record["verdict"] = experiment.verdict(frame, record["config"])
        style.plt.style.use(style.SHEET)
        figure = experiment.draw(frame, record["config"])
    except Exception as error:  # of verdict and figure, where columns or values are missing
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"{csv.name} and {info.name} do not give the figure of {task.name} ({reason})") from error
    _write_data(task.files, task.folder, text, record)
    _save_figure(figure, png, "png")
    _save_figure(figure, svg, "svg")
    if waits:
        csv.unlink()
        info.unlink()
    return str(record["verdict"])


# -- one after the other, or side by side ---------------------------------------------------------
Report = Callable[[str, float], None]


def _reason(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno}){notes}"


def run_here(tasks: list[Task], report: Report, workers: int = 1) -> Iterator[Outcome]:
    """Run tasks one after the other in this process, each with ``workers``; a KeyboardInterrupt passes through."""
    for task in tasks:
        begin = time.perf_counter()
        try:
            with spare(partial(_pool, workers) if workers > 1 else None):
                outcome = execute(task, lambda share, name=task.name: report(name, share))  # type: ignore[misc]
            yield outcome
        except Exception as error:
            yield Outcome(task.name, "failed", _reason(error), time.perf_counter() - begin)


def _follow() -> None:
    """Of a worker: Ctrl-C is its parent's business, and when its parent ends, however that comes, so does it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Processes for parts of one experiment; Ctrl-C is this process's business, and ends them."""
    before = multiprocessing.active_children()
    with limited_threads(max(1, (os.cpu_count() or 1) // workers)):
        pool = ProcessPoolExecutor(workers, start_method(), _follow)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            ours = set(multiprocessing.active_children()).difference(before)
            for process in ours:
                process.terminate()
            for process in ours:
                process.join()
            raise
        pool.shutdown()


def _work(task: Task, threads: int, connection: Connection) -> None:
    """A worker: one experiment."""
    _follow()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    begin = time.perf_counter()
    try:
        connection.send(execute(task, connection.send))
    except Exception as error:
        connection.send(Outcome(task.name, "failed", _reason(error), time.perf_counter() - begin))
    finally:
        connection.close()


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Environment in which new processes use so many threads each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: str(threads) for name in _THREADS})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_method() -> Any:
    """How processes begin: where the system has it, forked from a server that imported the libraries once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_parallel(tasks: list[Task], jobs: int, report: Report) -> Iterator[Outcome]:
    """Run tasks in up to ``jobs`` processes; on the way out, however that comes, no worker is left.

    Where the system has it, workers are forked from a server that imported the libraries once.
    """
    context = start_method()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting, pids = list(tasks), set()
    running: dict[Connection, tuple[Any, Task]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(waiting[0], threads, sender), daemon=True)
                with limited_threads(threads):
                    process.start()
                sender.close()
                pids.add(process.pid or 0)
                running[receiver] = (process, waiting.pop(0))
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, task = running[ready]
                try:
                    message = ready.recv()
                except EOFError:
                    process.join()
                    message = Outcome(task.name, "failed", f"its process died (exit code {process.exitcode})", 0.0)
                if isinstance(message, Outcome):
                    del running[ready]
                    process.join()
                    yield message
                else:
                    report(task.name, float(message))
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
        for folder in {task.folder for task in tasks}:
            _clean(folder, pids)
            _clean(folder / ".done", pids)
