"""Is what an audit computes once, for several questions, what each of them would compute by itself?"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import deis_analysis as da
from deis_analysis.analysis.exactness import step_moment, step_moments
from deis_analysis.audit import identity
from deis_analysis.audit.case import read_case
from deis_analysis.audit.specs import registry_subject
from deis_analysis.audit.tables import exact_nodes, run_errors, sparsest_steps, trunk, up_to
from deis_analysis.solvers import SOLVERS

VP = da.VPLinear()


def case_of(name, calls=9):
    return read_case(registry_subject(name).own(calls))


@pytest.mark.parametrize("name", ["ddim", "tab3", "dpmpp_3m", "unipc2_bh2_x0", "rhork_2heun", "sde_dpmpp_2m", "ddpm"])
def test_the_steps_but_the_last_are_those_of_the_shorter_table(name):
    case = case_of(name)
    whole = sparsest_steps(case.table, case.process, case.floor)
    short = sparsest_steps(up_to(case.table, whole.chain[-2]), case.process, case.floor)
    found = trunk(case.table, case.process, case.floor)
    assert (found.before, found.chain, found.table.prediction) == (short.before, short.chain, short.table.prediction)
    for one, other in zip(found.table.matrices, short.table.matrices, strict=True):
        assert one.shape == other.shape
        assert np.abs((one - other).toarray()).max(initial=0.0) < 1e-15
    assert found.table.times[-1] == whole.table.times[whole.chain[-2]]


def test_the_steps_of_one_step_are_all_of_them():
    case = case_of("rhork_2heun", 2)
    assert trunk(case.table, case.process).chain == sparsest_steps(case.table, case.process).chain == (0, 2)


@pytest.mark.parametrize("lam_sde", [0.0, 1.0])
def test_moments_of_several_powers_are_those_of_each(lam_sde):
    table = da.build("dpmpp_3m", VP, da.grid(VP, 6))
    found = step_moments(table, VP, "x0", "lam", 3, 4, range(5), lam_sde)
    for power, moments in enumerate(found):
        assert moments == pytest.approx(step_moment(table, VP, "x0", "lam", 3, 4, power, lam_sde), rel=1e-14)
    assert len({round(value, 12) for value, _, _ in found}) == 5


def test_errors_need_the_exact_states_that_are_named_and_no_other():
    process, mix, options = da.order_problem()
    case = read_case(registry_subject("tab3").ladder(10))
    x = mix.sample(4, 0, process, options["t_start"])
    for start in (0, 5):
        nodes = exact_nodes(case.trunk, start)
        path = {k: mix.flow(process, x, float(case.table.times[0]), float(case.table.times[k])) for k in nodes if k}
        path |= {0: x} if 0 in nodes else {}
        assert np.all(np.isfinite(run_errors(case.trunk, mix.eps(process), path, start)))
        for k in nodes:
            with pytest.raises(KeyError):
                run_errors(case.trunk, mix.eps(process), {j: y for j, y in path.items() if j != k}, start)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_row_without_its_last_step_is_taken_from_the_whole_only_where_it_is_the_same(stochastic):
    """Of every row of the registry, on the levels of another sampler; some end in a way of their own."""
    case = case_of("sde_dpmpp_2m" if stochastic else "tab3", 8)
    levels, taken, apart = case.table.times, 0, 0
    for _, row, build in identity._candidates(tuple(SOLVERS), stochastic):
        steps = identity._fitting(row, 8, False)
        try:
            ts = identity._times(build, steps, levels, 8, None)
            own = None if ts is None else identity._form(build, case, ts)
        except (ValueError, ZeroDivisionError):
            continue
        if own is None:
            continue
        made, whole = identity._pattern(build, steps)[0], identity._of_whole(case, row, build, levels, ts)
        if whole is None:
            apart += 1
            continue
        taken += 1
        for one, other in ((own.start, whole.start), (own.weights[:, :made], whole.weights[:, :made])):
            assert np.abs(one[: made + 1] - other[: made + 1]).max() < 1e-12 * np.abs(one).max()
    assert taken > 5
    assert apart > 0


def test_a_row_that_ends_in_a_way_of_its_own_is_built_without_its_last_step():
    lowered = [build for name, _, build in identity._candidates(tuple(SOLVERS), False) if "lower_order" in name]
    assert lowered
    assert not any(identity._steady(build, 7, 8) for build in lowered)
    assert identity._steady(SOLVERS["tab3"].build, 7, 8)


def test_the_command_imports_diffusers_without_the_compiler_and_leaves_it_importable():
    pytest.importorskip("diffusers")
    code = (
        "import sys; from deis_analysis.cli import _import_diffusers; _import_diffusers();"
        "assert 'diffusers.utils.torch_utils' in sys.modules; assert 'torch._dynamo' not in sys.modules;"
        "import torch._dynamo; _import_diffusers(); assert sys.modules['torch._dynamo'] is torch._dynamo"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
