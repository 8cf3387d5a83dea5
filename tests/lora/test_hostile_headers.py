"""Headers made to cost time or memory: refused at the first piece that no LoRA has."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
import torch

from lib_ziplora.errors import LoraFileError
from lib_ziplora.lora.io.container import DIMENSION_LIMIT, METADATA_LIMIT, TENSOR_LIMIT
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.sidecar import KEY, read_sidecar
from lib_ziplora.lora.io.size import file_shapes

from .files import CONV, Q, layer, layers, save, tensors

MEGABYTES = 12 << 20


def entry(shape, begin=0, end=0, dtype="F16"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(path, header, data=b""):
    text = header if isinstance(header, str) else json.dumps(header)
    content = text.encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path


HOSTILE = {
    "dimensions": lambda: json.dumps({"a": entry([1] * 400_000)}),
    "empty dimensions": lambda: json.dumps({"a": entry([0] * 400_000)}),
    "list of objects": lambda: '{"__metadata__":[' + "{}," * (MEGABYTES // 3) + "{}]}",
    "list in the metadata": lambda: '{"__metadata__":{"a":[' + "{}," * (MEGABYTES // 3) + "{}]}}",
    "lists in lists": lambda: '{"__metadata__":{"a":' + "[" * MEGABYTES + "}}",
    "metadata": lambda: json.dumps({"__metadata__": {str(i): "" for i in range(400_000)}}),
    "tensors": lambda: json.dumps({str(i): entry([0]) for i in range(100_000)}),
    "objects in a tensor": lambda: '{"a":' + '{"b":' * (MEGABYTES // 5) + "}",
    "a number of many digits": lambda: json.dumps({"a": entry([1])}).replace(
        "[1]", "[" + "9" * MEGABYTES + "]"
    ),
    "spaces": lambda: '{"a":' + " " * MEGABYTES + "[]}",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_header_costs_50_ms_and_ten_times_its_bytes(tmp_path, name):
    file = written(tmp_path / "a.safetensors", HOSTILE[name]())
    times = []
    for _ in range(3):
        started = time.process_time()
        with pytest.raises(LoraFileError, match=r"a\.safetensors has"):
            inspect_header(file)
        times.append(time.process_time() - started)
    assert min(times) < 0.05
    tracemalloc.start()
    with pytest.raises(LoraFileError):
        inspect_header(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * file.stat().st_size


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([0] * (DIMENSION_LIMIT + 1))},
        {"a": entry([0, 1 << 62])},
        {f"t{i}": entry([0]) for i in range(TENSOR_LIMIT + 1)},
        {"__metadata__": {str(i): "" for i in range(METADATA_LIMIT + 1)}},
    ],
)
def test_more_than_any_lora_has_is_refused(tmp_path, header):
    with pytest.raises(LoraFileError, match=r"a\.safetensors has .*, more than any LoRA has"):
        inspect_header(written(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize(
    "text", ['{"a":1}', '{"a"', '{"a":{}', "{} {}", '{"a":{"dtype":1}}', '{"__metadata__":3}']
)
def test_what_is_no_header_is_called_damaged(tmp_path, text):
    with pytest.raises(LoraFileError, match="damaged header"):
        inspect_header(written(tmp_path / "a.safetensors", text))


@pytest.mark.parametrize("name", ["__metadata__", "a"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, name):
    value = "{}" if name == "__metadata__" else json.dumps(entry([0]))
    with pytest.raises(LoraFileError, match="occurs twice"):
        inspect_header(written(tmp_path / "a.safetensors", f'{{"{name}":{value},"{name}":{value}}}'))


def test_headers_with_spaces_null_metadata_and_any_order_are_read(tmp_path):
    content = tensors(layers(layer(Q)))
    file = save(tmp_path / "a.safetensors", content, {"k": '{"a": [1, {}]}', "empty": ""})
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    mixed = {key: dict(reversed(value.items())) for key, value in reversed(header.items())}
    spaced = written(tmp_path / "b.safetensors", json.dumps(mixed, indent=3) + " \n", data)
    assert read_lora(spaced).metadata == {"k": '{"a": [1, {}]}', "empty": ""}
    none = written(tmp_path / "c.safetensors", json.dumps({**mixed, "__metadata__": None}), data)
    for path in (spaced, none):
        assert torch.equal(read_lora(path).layers[Q].delta(), read_lora(file).layers[Q].delta())


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize(
    "shape", [[0, 1 << 27, 1 << 27, 1 << 27], [1 << 28, 0, 1 << 28, 1 << 28, 1 << 28, 1]]
)
@pytest.mark.parametrize("key", [f"{Q}.lora_up.weight", "stray", f"{Q}.diff_b"])
def test_empty_tensors_of_huge_shape_are_refused_or_left_alone(tmp_path, dtype, shape, key):
    pair = {k: v.half() for k, v in tensors(layers(layer(Q))).items() if k != key}
    whole = save(tmp_path / "a.safetensors", pair).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    file = written(
        tmp_path / "a.safetensors", {**header, key: entry(shape, 0, 0, dtype)}, whole[8 + length :]
    )
    file_shapes(file)
    if key == "stray":
        assert set(read_lora(file).layers) == {Q}
    else:
        with pytest.raises(LoraFileError, match=f"a.safetensors: .*{Q} is empty"):
            read_lora(file)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_more_dimensions_than_torch_knows_are_refused(tmp_path, dtype):
    with pytest.raises(LoraFileError, match="more than any LoRA has"):
        inspect_header(written(tmp_path / "a.safetensors", {"a": entry([1] * 33, 0, 2, dtype)}, b"ab"))


LARGE = torch.tensor(1e300, dtype=torch.float64)
PAIR = {f"{Q}.lora_down.weight": torch.ones(2, 5), f"{Q}.lora_up.weight": torch.ones(6, 2)}
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"


@pytest.mark.parametrize(
    "content",
    [
        {f"{Q}.diff_b": LARGE.expand(6)},
        {f"{Q}.lora_up.weight": LARGE.expand(6, 2)},
        {f"{Q}.lora_down.weight": LARGE.expand(2, 5)},
        {f"{Q}.alpha": LARGE},
        {f"{Q}.scale": LARGE},
        {f"{Q}.alpha": torch.tensor(3e38), f"{Q}.lora_up.weight": torch.full((6, 2), 100.0)},
        {f"{Q}.alpha": torch.tensor(3e38), f"{Q}.lora_up.bias": torch.full((6,), 100.0)},
        {f"{NORM}.w_norm": LARGE.expand(4), f"{NORM}.b_norm": torch.ones(4)},
        {f"{CONV}.diff": LARGE.expand(4, 4, 3, 3)},
        {f"{CONV}.lokr_w1": LARGE.expand(2, 2), f"{CONV}.lokr_w2": torch.ones(2, 2, 3, 3)},
        {
            f"{CONV}.lokr_w1": torch.ones(2, 2),
            f"{CONV}.lokr_w2": torch.ones(2, 2, 3, 3),
            f"{CONV}.scale": LARGE,
        },
    ],
)
def test_what_is_infinite_in_fp32_is_refused(tmp_path, content):
    content = {key: tensor.contiguous() for key, tensor in {**PAIR, **content}.items()}
    with pytest.raises(LoraFileError, match=r"a\.safetensors: .* (NaN or infinity|too large)"):
        read_lora(save(tmp_path / "a.safetensors", content))


def test_the_strings_of_a_sidecar_cost_no_more_than_its_bytes(tmp_path):
    about = json.dumps({"format": 1, "loras": 2, "about": {}})[:-2] + ',"a":[' + "{}," * (1 << 20) + "{}]}}"
    file = written(tmp_path / "a.ziplora", {"__metadata__": {KEY: about}})
    tracemalloc.start()
    with pytest.raises(LoraFileError, match="damaged"):
        read_sidecar(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * file.stat().st_size
