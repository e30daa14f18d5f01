"""Operations and bytes of calls, against PyTorch's own counter of operations and against plain counting."""

from itertools import product as every

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moescope.profiler.roofline.call import knows, work_of_call
from moescope.profiler.roofline.operands import operand_text


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def text(*tensors):
    return ";".join(",".join(map(str, shape)) for shape in tensors)


@pytest.mark.parametrize(
    ("op", "call", "operands"),
    [
        ("aten::mm", lambda a, b: torch.mm(a, b), [(7, 12), (12, 5)]),
        ("aten::addmm", lambda c, a, b: torch.addmm(c, a, b), [(5,), (7, 12), (12, 5)]),
        ("aten::bmm", lambda a, b: torch.bmm(a, b), [(3, 7, 12), (3, 12, 5)]),
        ("aten::baddbmm", lambda c, a, b: torch.baddbmm(c, a, b), [(3, 7, 5), (3, 7, 12), (3, 12, 5)]),
        ("aten::linear", lambda x, w: torch.nn.functional.linear(x, w), [(2, 4, 12), (5, 12)]),
        ("aten::matmul", lambda a, b: torch.matmul(a, b), [(2, 3, 7, 12), (2, 3, 12, 5)]),
        ("aten::matmul", lambda a, b: torch.matmul(a, b), [(2, 7, 12), (12, 5)]),
    ],
)
def test_products_have_the_operations_that_pytorch_counts_and_move_each_operand_once(op, call, operands):
    tensors = [meta(*shape) for shape in operands]
    work = work_of_call(op, text(*operands), "f32")
    assert work.flops == counted(lambda: call(*tensors))
    result = call(*tensors)
    assert work.bytes == 4 * (sum(tensor.numel() for tensor in tensors) + result.numel())
    assert work.evidence == "derived"


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), list(every((1, 2), (0, 1), (1, 2), (1, 2))))
def test_convolutions_have_the_operations_that_pytorch_counts(stride, padding, dilation, groups):
    x, w = meta(3, 4, 11, 9), meta(6, 4 // groups, 3, 2)
    arguments = [[stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups]
    dims = [list(x.shape), list(w.shape), [], [], [], [], [], [], []]
    values = ["", "", "", *(str(value) for value in arguments)]
    result = torch.ops.aten.convolution(x, w, None, *arguments)
    work = work_of_call("aten::convolution", operand_text(dims, values), "f32")
    assert work.flops == counted(lambda: torch.ops.aten.convolution(x, w, None, *arguments))
    assert work.bytes == 4 * (x.numel() + w.numel() + result.numel())
    mask = [True, True, False]
    backward = [list(result.shape), *dims[:2], [], [], [], [], [], [], [], []]
    told = ["", "", "", "[0]", *(str(value) for value in arguments), str(mask)]
    work = work_of_call("aten::convolution_backward", operand_text(backward, told), "f32")
    # Each gradient multiplies the pairs that the convolution does; PyTorch's counter forgets groups in one of them.
    assert work.flops == 2 * counted(lambda: torch.ops.aten.convolution(x, w, None, *arguments))
    if groups == 1:
        gradients = (result, x, w, [0], *arguments, mask)
        assert work.flops == counted(lambda: torch.ops.aten.convolution_backward(*gradients))


def test_attention_without_a_mask_has_the_operations_that_pytorch_counts():
    q, k, v = meta(2, 8, 16, 32), meta(2, 8, 24, 32), meta(2, 8, 24, 32)
    shapes = text(q.shape, k.shape, v.shape) + ";=0.0;=False"
    work = work_of_call("aten::_scaled_dot_product_flash_attention", shapes, "bf16")
    assert work.flops == counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert work.bytes == 2 * (q.numel() + k.numel() + v.numel() + q.numel())


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_a_causal_mask_leaves_the_pairs_that_see_one_another(length):
    pairs = sum(key <= query for query in range(length) for key in range(length))
    heads, d_query, d_value = 6, 24, 16
    q, k, v = (2, length, heads, d_query), (2, length, 2, d_query), (2, length, 2, d_value)
    forward = text(q, k, v) + ";;;;;;=True"
    work = work_of_call("aten::_flash_attention_forward", forward, "bf16")
    assert work.flops == 2 * heads * pairs * 2 * (d_query + d_value)
    told_by_kernel = work_of_call("FlashAttnFunc", text(q, k, v), "bf16", True)
    assert told_by_kernel.flops == work.flops
    gradient = text((2, length, heads, d_value), q, k, v) + ";;;;;;;;=True"
    backward = work_of_call("aten::_flash_attention_backward", gradient, "bf16")
    # scores anew, and the gradients of v, of the probabilities, of q and of k
    assert backward.flops == 2 * heads * pairs * 2 * (d_query + d_value + d_value + d_query + d_query)


def test_grouped_products_count_every_token_once():
    tokens, groups, k, n = 40, 4, 16, 24
    offsets = [0, 3, 19, 40]
    counted_rows = sum(high - low for low, high in zip([0, *offsets], offsets, strict=False))
    work = work_of_call("aten::_grouped_mm", text((tokens, k), (groups, k, n), (groups,)), "bf16")
    assert work.flops == counted_rows * k * n * 2
    assert work.bytes == 2 * (tokens * k + groups * k * n + tokens * n)
    assert work.evidence == "inferred"
    few = work_of_call("aten::_grouped_mm", text((2, k), (64, k, n), (64,)), "bf16")
    assert few.bytes == 2 * (2 * k + 2 * k * n + 2 * n)
    gradient = work_of_call("aten::_grouped_mm", text((k, tokens), (tokens, n), (groups,)), "bf16")
    assert gradient.flops == work.flops
    assert gradient.bytes == 2 * (k * tokens + tokens * n + groups * k * n)


def test_narrow_types_are_read_in_their_size_and_written_in_bf16():
    work = work_of_call("aten::_scaled_mm", text((64, 128), (128, 32), (64, 1), (1, 32)), "fp8_e4m3")
    assert (work.flops, work.bytes) == (2 * 64 * 128 * 32, 64 * 128 + 128 * 32 + 2 * 64 * 32)
    packed = work_of_call("aten::_scaled_mm", text((64, 64), (64, 32)), "fp4")
    assert (packed.flops, packed.bytes) == (work.flops, (64 * 128 + 128 * 32) / 2 + 2 * 64 * 32)
    block = work_of_call(
        "sglang::deep_gemm_fp8_fp8_bf16_nt", text((9, 256), (9, 2), (512, 256), (4, 2), (9, 512)), "fp8_e4m3"
    )
    assert block.flops == 2 * 9 * 256 * 512
    result_first = work_of_call("_C::cutlass_scaled_mm", text((9, 512), (9, 256), (256, 512)), "fp8_e4m3")
    assert result_first.flops == block.flops


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("aten::mm", "7,12;11,5"),
        ("aten::mm", "7,12"),
        ("aten::addmm", "5;7,12"),
        ("aten::bmm", "3,7,12;4,12,5"),
        ("aten::linear", "7,12;5,11"),
        ("aten::convolution", "3,4,11,9;6,4,3,2"),
        ("aten::convolution_backward", "3,6,9,8;3,4,11,9;6,4,3,2"),
        ("aten::_scaled_dot_product_flash_attention", "2,8,16,32;2,8,24,32;2,8,24,32"),
        ("aten::_scaled_dot_product_flash_attention", "2,8,16,32;2,8,24,32;2,8,24,32;;=True"),
        ("aten::_flash_attention_forward", "100,8,32;100,8,32;100,8,32;5;5"),
        ("aten::_grouped_mm", "7,12;4,11,5"),
        ("aten::mm", "no shape"),
        ("aten::mm", None),
        ("sgl_kernel::something_new", "7,12;12,5"),
    ],
)
def test_what_the_operands_do_not_tell_is_unknown_with_a_reason(op, shapes):
    work = work_of_call(op, shapes, "bf16")
    assert work.flops is None
    assert work.reason


def test_one_sequence_of_a_packed_batch_is_counted():
    work = work_of_call("aten::_flash_attention_forward", "100,8,32;100,8,32;100,8,32;2;2;;;;=False", "bf16")
    assert work.flops == 2 * 8 * 100 * 100 * (32 + 32)


def test_an_unknown_type_has_operations_but_no_bytes():
    work = work_of_call("aten::mm", "7,12;12,5", None)
    assert (work.flops, work.bytes) == (2 * 7 * 12 * 5, None)
    assert work.reason
    assert knows("aten::mm")
    assert not knows("aten::sort")


@pytest.mark.parametrize(
    ("op", "call", "shapes"),
    [
        ("aten::add", torch.add, [(4, 1, 6), (5, 6)]),
        ("aten::mul_", torch.mul, [(5, 6), (6,)]),
        ("aten::addcmul_", torch.addcmul, [(5, 6), (5, 6), (5, 6)]),
        ("aten::silu", torch.nn.functional.silu, [(5, 6)]),
        ("aten::_softmax", lambda x: torch.softmax(x, -1), [(5, 6)]),
    ],
)
def test_operators_that_pass_over_their_operands_read_them_and_write_their_result(op, call, shapes):
    tensors = [meta(*shape) for shape in shapes]
    work = work_of_call(op, text(*shapes), "bf16")
    moved = sum(tensor.numel() for tensor in tensors) + call(*tensors).numel()
    assert (work.flops, work.bytes) == (0, 2 * moved)


def test_lists_are_read_and_written_once_and_shapes_that_do_not_fit_are_unknown():
    assert work_of_call("aten::cat", "[2,3|4,3];=0", "f32").bytes == 2 * 4 * (6 + 12)
    assert work_of_call("aten::add", "4,5;4,6", "f32").bytes is None
    assert work_of_call("aten::fill_", "4,5", "f32").bytes == 80


def test_sizes_that_no_tensor_has_are_not_multiplied():
    assert operand_text([[2**59] * 40, [2**59]]) == ";" + str(2**59)
    work = work_of_call("aten::bmm", ";".join([",".join([str(2**59)] * 3)] * 2), "f64")
    assert work.flops == 2.0 * float(2**59) ** 4
    assert work_of_call("aten::mm", ";".join([",".join(["9"] * 30)] * 2), "f64").flops is None
