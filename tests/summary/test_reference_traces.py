"""Real traces whose figures are known in exact arithmetic, computed independently of this code."""

from pathlib import Path

import pytest

from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def dlrm():
    return summarise(open_source([DATA / "param_dlrm_8rank_v100"]))


def test_dlrm_ranks_have_the_known_spans_and_communication(dlrm):
    assert [rank["rank"] for rank in dlrm["ranks"]] == list(range(8))
    assert [rank["comm_us"] for rank in dlrm["ranks"]] == [5798, 11336, 3492, 9774, 6587, 6251, 3558, 1746]
    assert [rank["span_us"] for rank in dlrm["ranks"]] == [13009, 18749, 11350, 18853, 16589, 16392, 11410, 10967]


def test_dlrm_ranks_hide_the_known_share(dlrm):
    shares = [round(100 * rank["overlap_fraction"], 2) for rank in dlrm["ranks"]]
    assert shares == [4.50, 2.47, 7.88, 3.31, 0.56, 0.64, 7.56, 9.51]


def test_totals_are_sums_over_ranks_and_not_averages_of_shares(dlrm):
    total = dlrm["total"]
    for key in ("span_us", "comm_us", "overlapped_us", "exposed_comm_us"):
        assert total[key] == pytest.approx(sum(rank[key] for rank in dlrm["ranks"]))
    assert total["overlap_fraction"] == total["overlapped_us"] / total["comm_us"]


def test_fractional_microseconds_come_out_exactly():
    summary = summarise(open_source([DATA / "hta_ddp_nccl_meta_a100"]))
    (rank,) = summary["ranks"]
    assert (rank["comm_us"], round(rank["compute_us"], 2), round(rank["overlapped_us"], 2)) == (
        46876.493,
        115655.85,
        7317.02,
    )
    assert (round(rank["span_us"]), round(rank["busy_us"])) == (660551, 157500)
    assert rank["units"]["total"] == 108
    assert rank["units"]["comm_typical"] == 8
    backward = next(phase for phase in rank["phases"] if phase["name"] == "## backward ##")
    assert backward["comm_us"] > 0.99 * sum(phase["comm_us"] for phase in rank["phases"])


def test_no_communication_is_null_with_a_reason_and_never_zero():
    summary = summarise(open_source([DATA / "tracelens_sglang_moe_decode_b300"]))
    (rank,) = summary["ranks"]
    assert (round(rank["span_us"], 1), round(rank["busy_us"], 1), rank["comm_us"]) == (7505.1, 5385.3, 0)
    assert rank["kernels"] == 718
    for part in (rank, summary["total"]):
        assert part["overlap_fraction"] is None
        assert part["overlap_fraction_reason"]


@pytest.mark.parametrize(
    "folder", ["hta_ddp_nccl_meta_a100", "param_dlrm_8rank_v100", "tracelens_sglang_moe_decode_b300"]
)
def test_parts_fill_the_span_and_no_kernel_is_unknown(folder):
    for rank in summarise(open_source([DATA / folder]))["ranks"]:
        assert rank["busy_us"] + rank["idle_us"] == pytest.approx(rank["span_us"], abs=1e-6)
        assert rank["overlapped_us"] + rank["exposed_comm_us"] == pytest.approx(rank["comm_us"], abs=1e-6)
        assert sum(operator["share"] for operator in rank["operators"]) == pytest.approx(1)
        assert rank["unknown_us"] == 0
