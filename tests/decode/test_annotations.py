"""What names of ranges tell of decode steps, and what they do not."""

import pytest

from moescope.profiler.decode.annotations import Told, decode_step_in


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("step[DECODE bs=16]", Told(16, 16, None)),
        ("step[EXTEND bs=1 toks=512]", None),
        ("step[IDLE bs=0]", None),
        (
            "execute_16_context_0(sq0sk0sqsq0sqsk0)_generation_16(sq16sk8193sqsq16sqsk8193)",
            Told(16, 16, 8193),
        ),
        ("execute_context_0(0)_generation_32(32)", Told(32, 32, None)),
        ("execute_context_1(512)_generation_31(31)", None),
        ("execute_context_1(512)_generation_0(0)", None),
        ("decode", Told(None, None, None)),
        ("decode_step 7", Told(None, None, None)),
        ("ModelRunner.decode", Told(None, None, None)),
        ("decode_attention_fwd", None),
        ("alloc_paged_token_slots_decode", None),
        ("decoder.layers.3", None),
        ("prefill", None),
        ("vae_decode_image", None),
        ("## forward ##", None),
    ],
)
def test_a_range_s_name_tells_of_a_step(name, told):
    assert decode_step_in(name) == told
