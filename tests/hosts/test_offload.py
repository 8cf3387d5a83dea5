"""Parts that leave a GPU for a while: a GPU of the imagination, on which every test machine has one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib_ziplora.hosts import offload as parking
from lib_ziplora.hosts.offload import parked
from lib_ziplora.hosts.standalone import StandaloneHost

from ..support import minixl
from .contract import Boom, assert_same, snapshot

GPU, OTHER = torch.device("cuda:0"), torch.device("cuda:1")


class Devices:
    """Where tensors are said to be; moving one really copies it, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: dict[int, torch.device] = {}
        self.moved: list[torch.device] = []
        monkeypatch.setattr(parking, "device_of", self.of)
        monkeypatch.setattr(parking, "move", self.move)

    def put(self, part: nn.Module, device: torch.device) -> None:
        self.places |= {id(tensor): device for tensor in (*part.parameters(), *part.buffers())}

    def of(self, tensor: Tensor) -> torch.device:
        return self.places.get(id(tensor), torch.device("cpu"))

    def move(self, tensor: Tensor, device: torch.device) -> None:
        tensor.data = tensor.data.clone()
        self.places[id(tensor)] = device
        self.moved.append(device)

    def all_of(self, part: nn.Module) -> set[torch.device]:
        return {self.of(tensor) for tensor in (*part.parameters(), *part.buffers())}


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    return Devices(monkeypatch)


def part() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[0].weight.requires_grad_(False)
    return module


@pytest.mark.parametrize("fails", [False, True])
def test_parts_are_off_the_gpu_inside_and_back_where_they_were_afterwards(
    devices: Devices, fails: bool
) -> None:
    first, second, stays = part(), part(), part()
    devices.put(first, GPU)
    devices.put(second[0], OTHER)
    devices.put(stays, GPU)
    parts = [first, second, stays]
    before, tensors = snapshot(parts), [id(t) for p in parts for t in (*p.parameters(), *p.buffers())]
    try:
        with parked([first, second]):
            assert devices.all_of(first) == devices.all_of(second) == {torch.device("cpu")}
            assert devices.all_of(stays) == {GPU}
            if fails:
                raise Boom
    except Boom:
        assert fails
    assert devices.all_of(first) == {GPU}
    assert (devices.all_of(second[0]), devices.all_of(second[1])) == ({OTHER}, {torch.device("cpu")})
    assert_same(before, snapshot(parts))
    assert tensors == [id(t) for p in parts for t in (*p.parameters(), *p.buffers())]


def test_what_two_parts_share_is_moved_once(devices: Devices) -> None:
    first, second = part(), part()
    second[0] = first[0]
    devices.put(first, GPU)
    devices.put(second, GPU)
    with parked([first, second]):
        assert len(devices.moved) == len(
            {id(t) for p in (first, second) for t in (*p.parameters(), *p.buffers())}
        )
    assert devices.all_of(second) == {GPU}


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_memory_that_is_the_cpus_own_is_left_alone(devices: Devices, kind: str) -> None:
    module = part()
    devices.put(module, torch.device(kind))
    with parked([module]):
        assert devices.all_of(module) == {torch.device(kind)}
    assert devices.moved == []


def test_parts_that_could_not_all_leave_are_back_all_the_same(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = part()
    devices.put(module, GPU)

    def full(tensor: Tensor, device: torch.device) -> None:
        if device.type == "cpu" and len(devices.moved) == 2:
            raise MemoryError
        devices.move(tensor, device)

    monkeypatch.setattr(parking, "move", full)
    with pytest.raises(MemoryError), parked([module]):
        pytest.fail("the block is not reached")
    assert devices.all_of(module) == {GPU}


def test_what_a_failed_update_held_is_freed_before_the_parts_come_back(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, alive = part(), []
    devices.put(module, GPU)

    class Activations:
        def __init__(self) -> None:
            alive.append(self)

        def __del__(self) -> None:
            held.remove("activations")

    held = ["activations"]

    def update() -> None:
        kept = Activations()
        alive.clear()
        raise Boom(repr(type(kept)))

    def back(tensor: Tensor, device: torch.device) -> None:
        assert device.type == "cpu" or not held
        devices.move(tensor, device)

    monkeypatch.setattr(parking, "move", back)
    with pytest.raises(Boom), parked([module]):
        update()
    assert devices.all_of(module) == {GPU}


def test_the_standalone_host_parks_all_but_the_unet(devices: Devices) -> None:
    pytest.importorskip("diffusers")
    host = StandaloneHost(minixl.MODEL, device="cpu", dtype="fp32")
    pipeline = host.pipeline()
    others = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae]
    for module in (pipeline.unet, *others):
        devices.put(module, GPU)
    with host.open() as session:
        before = snapshot(others)
        with session.unet_alone():
            assert [devices.all_of(module) for module in others] == [{torch.device("cpu")}] * 3
            assert devices.all_of(pipeline.unet) == {GPU}
        assert [devices.all_of(module) for module in (pipeline.unet, *others)] == [{GPU}] * 4
        assert_same(before, snapshot(others))
