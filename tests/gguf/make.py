"""Writes quants.gguf with the PyPI package `gguf`: blocks of every type with random bits, beside the values that this package reads from them, and metadata
of every kind.

    pip install gguf==0.19.0 numpy && python tests/gguf/make.py"""
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFValueType as V, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

ROWS, COLUMNS = 2, 256
# Places of float16 scales in a block, which must be finite.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.F16: [0]}

rng = np.random.default_rng(23)
writer = GGUFWriter(Path(__file__).with_name("quants.gguf"), "llama")
for kind in [T.F32, T.F16, T.BF16, *list(SCALES)[:-1]]:
    length, n_bytes = GGML_QUANT_SIZES[kind]
    n_blocks = ROWS * COLUMNS // length
    blocks = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
    if kind in (T.F32, T.BF16):
        values = rng.normal(size=(n_blocks, 1)).astype(np.float32)
        blocks = values.view(np.uint8)[:, 4 - n_bytes:]
    for at in SCALES.get(kind, []):
        scale = (rng.normal(size=n_blocks) * 0.1).astype(np.float16)
        blocks[:, at:at + 2] = scale.view(np.uint8).reshape(n_blocks, 2)
    blocks = np.ascontiguousarray(blocks).reshape(ROWS, -1)
    expected = dequantize(blocks.view({T.F32: np.float32, T.F16: np.float16}.get(kind, np.uint8)), kind)
    assert expected.shape == (ROWS, COLUMNS) and np.isfinite(expected).all()
    writer.add_tensor(kind.name, blocks, raw_shape=blocks.shape, raw_dtype=kind)
    writer.add_tensor(f"{kind.name}.expected", expected.astype(np.float32))
    if kind == T.F32:
        writer.add_tensor("Q8_0.written", quantize(expected, T.Q8_0), raw_dtype=T.Q8_0)

writer.add_uint8("kind.u8", 200)
writer.add_int8("kind.i8", -100)
writer.add_uint16("kind.u16", 60_000)
writer.add_int16("kind.i16", -30_000)
writer.add_uint32("kind.u32", 4_000_000_000)
writer.add_int32("kind.i32", -2_000_000_000)
writer.add_uint64("kind.u64", 2**63 + 1)
writer.add_int64("kind.i64", -(2**62))
writer.add_float32("kind.f32", 0.1)
writer.add_float64("kind.f64", 0.1)
writer.add_bool("kind.bool", True)
writer.add_string("kind.text", "a\nb ça 日本語")
writer.add_array("kind.texts", ["", "ä", "b"])
writer.add_array("kind.integers", [1, -2, 3])
writer.add_array("kind.floats", [0.5, -1.5])
writer.add_array("kind.bools", [True, False])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
