"""Every subject with every style: what is refused beforehand, what goes on, what stops it."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from lib_ziplora.config import LoraInput, MergeSettings
from lib_ziplora.errors import ConfigError, HostError, LoraFileError, OutputError
from lib_ziplora.hosts import Drawn, Sampler
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pictures.matrix_sheet import draw_sheet
from lib_ziplora.pipeline import matrix as module
from lib_ziplora.pipeline.matrix import LARGEST, MatrixRequest, prepare_matrix, require_ready, run_matrix
from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.document import document

from ..support.pico_host import PicoHost, module_names, write_kohya
from ..support.small_merges import pico_host, request

PROMPTS = {"dog": "a sks dog", "cat": "a sks cat", "ink": "in ink style", "clay": "in clay style"}


class DrawingHost(PicoHost):
    """A pico host that draws: one colour for each tag."""

    font = None

    def __init__(self, folder):
        super().__init__(folder)
        self.drawn, self.fails = [], ""

    def samplers(self):
        return ["one"]

    def default_sampler(self):
        return Sampler(steps=2, width=64, height=64)

    def check_drawing(self):
        pass

    def drawing(self, sampler, count):
        return self.open()

    def draw(self, picture, on_step):
        if self.fails and self.fails in picture.tagged:
            raise LoraFileError(f"{self.fails} can't be drawn.")
        on_step()
        self.drawn.append(picture)
        return Drawn(Image.new("RGB", (64, 64), (40 * len(self.drawn), 0, 0)), picture.tagged)

    def keep(self, grid, infotext):
        path = self.folder / "sheet.png"
        grid.save(path)
        return path


@pytest.fixture()
def host(tmp_path):
    pico_host(tmp_path)
    for seed, name in enumerate(("cat", "clay")):
        write_kohya(tmp_path / f"{name}.safetensors", module_names(), rank=2, seed=10 + seed)
    host = DrawingHost(tmp_path)
    host.cards = {name: {"activation text": text} for name, text in PROMPTS.items()}
    return host


def loras(*names, role="subject"):
    return tuple(LoraInput(name, role=role) for name in names)


def matrix(subjects=("dog", "cat"), styles=("ink", "clay"), method="direct", **changed):
    settings = dataclasses.replace(request().settings, method=method, steps=1, trajectories=1)
    base = {"settings": settings, "names": "{subject}_{style}"}
    return MatrixRequest(loras(*subjects), loras(*styles, role="style"), **{**base, **changed})


def states(cells):
    return {cell.request.output: cell.state for cell in cells}


def test_every_pair_is_the_merge_of_its_two(host):
    cells = run_matrix(matrix(), host)
    assert states(cells) == dict.fromkeys(("dog_ink", "dog_clay", "cat_ink", "cat_clay"), "done")
    run(dataclasses.replace(matrix(("cat",), ("ink",)).pairs()[0], output="alone"), host)
    a, b = (read_lora(host.folder / f"{name}.safetensors") for name in ("cat_ink", "alone"))
    assert all((a.layers[name].delta() - b.layers[name].delta()).abs().max() == 0 for name in a.layers)
    assert [(cell.subject, cell.style) for cell in cells][:2] == [("dog", "ink"), ("dog", "clay")]


def test_each_lora_is_prompted_with_its_own_activation_text(host):
    settings = dataclasses.replace(
        request().settings, method="ziplora", steps=1, trajectories=1, combined_weight=1.0, auto_balance=False
    )
    run_matrix(matrix(("dog",), ("ink", "clay"), settings=settings), host)
    for style in ("ink", "clay"):
        saved = document(host, f"dog_{style}").saved
        assert [lora.prompt for lora in saved.loras] == [PROMPTS["dog"], PROMPTS[style]]
        assert (
            PROMPTS[style] in saved.settings.combined_prompt and "sks dog" in saved.settings.combined_prompt
        )


def test_what_can_not_be_merged_is_named_beforehand_and_does_not_stop_the_rest(host):
    (host.folder / "broken.safetensors").write_bytes(b"no header")
    asked = matrix(("dog", "broken", "gone"), ("ink",))
    prepared = prepare_matrix(asked, host)
    require_ready(prepared)
    assert states(prepared.cells) == {
        "dog_ink": "ready",
        "broken_ink": "refused",
        "gone_ink": "refused",
    }
    cells = run_matrix(asked, host)
    assert [cell.state for cell in cells] == ["done", "refused", "refused"]
    assert "broken" in cells[1].sentence and "gone" in cells[2].sentence


@pytest.mark.parametrize("problem", [LoraFileError("It is gone now."), ValueError("secret")], ids=str)
def test_a_failure_does_not_stop_the_rest(host, monkeypatch, problem):
    real = module.run

    def run(prepared, *rest):
        if prepared.request.output == "dog_ink":
            raise problem
        return real(prepared, *rest)

    monkeypatch.setattr(module, "run", run)
    cells = run_matrix(matrix(("dog", "cat"), ("ink",)), host)
    assert states(cells) == {"dog_ink": "failed", "cat_ink": "done"}
    assert ("gone now" in cells[0].sentence) != ("ValueError" in cells[0].sentence)
    assert "secret" not in cells[0].sentence


def test_what_exists_is_left_out_or_replaced(host):
    run_matrix(matrix(("dog",), ("ink",)), host)
    file = host.folder / "dog_ink.safetensors"
    before = file.stat().st_mtime_ns
    cells = run_matrix(matrix(("dog", "cat"), ("ink",)), host)
    assert states(cells) == {"dog_ink": "exists", "cat_ink": "done"}
    assert file.stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="exists already"):
        require_ready(prepare_matrix(matrix(("dog",), ("ink",)), host))
    assert states(run_matrix(matrix(("dog",), ("ink",), overwrite=True), host)) == {"dog_ink": "done"}
    assert file.stat().st_mtime_ns != before


@pytest.mark.parametrize(("stopped", "state"), [("interrupt", "interrupted"), ("finish_now", "done")])
def test_both_ways_to_stop_leave_the_rest_and_keep_what_is_finished(host, stopped, state):
    def follow(event):
        if event.text.startswith("2 of 3") and "travel" in event.metrics:
            getattr(host, stopped)()

    asked = matrix(("dog", "cat"), ("ink", "clay"), "ziplora")
    first = asked.pairs()[0]
    run(first, host)
    cells = run_matrix(asked, host, follow)
    assert [cell.state for cell in cells] == ["exists", "done", state, "left"]
    assert (host.folder / "cat_ink.safetensors").exists() == (state == "done")
    assert not (host.folder / "cat_clay.safetensors").exists()


def test_progress_is_that_of_the_whole(host):
    events = []
    run_matrix(
        matrix(method="ziplora", settings=dataclasses.replace(request().settings, method="ziplora")),
        host,
        events.append,
    )
    steps = [event.step for event in events]
    assert steps == sorted(steps) and {event.total for event in events} == {steps[-1]}
    assert events[0].text.startswith("1 of 4, dog_ink: ") and events[-1].text.startswith("4 of 4, cat_clay: ")
    assert [e.text for e in host.events[-len(events) :]] == [e.text for e in events]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"subjects": ()}, "No subject"),
        ({"styles": ()}, "No style"),
        ({"names": "{subject}"}, "{style}"),
        ({"names": "mine"}, "{subject}"),
        ({"subjects": tuple(f"s{i}" for i in range(LARGEST)), "styles": ("a", "b")}, "more than"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense(changed, says):
    with pytest.raises(ConfigError, match=says):
        matrix(**changed)


def test_two_pairs_of_one_name_are_refused(host):
    with pytest.raises(ConfigError, match="Choose each LoRA once"):
        require_ready(prepare_matrix(matrix(("dog", "dog"), ("ink",)), host))


def test_when_nothing_can_be_merged_the_reason_is_told(host):
    host.refusal = "The checkpoint is no SDXL."
    with pytest.raises(ConfigError, match="no SDXL"):
        require_ready(prepare_matrix(matrix(method="ziplora"), host))


def test_names_are_made_of_the_files_names():
    asked = MatrixRequest(
        loras("in/a[1].v2.safetensors"), loras("{subject}", role="style"), "x {subject} {style}"
    )
    assert asked.pairs()[0].output == "x a_1_.v2 _subject_"
    assert (
        MatrixRequest(loras("a"), loras("b", role="style"), settings=MergeSettings()).pairs()[0].output
        == "a_b"
    )


def test_the_sheet_has_a_picture_of_every_merge_with_its_own_prompt(host):
    cells = run_matrix(matrix(), host)
    sheet = draw_sheet(cells, host)
    assert sheet is not None and sheet.pictures == 4 and sheet.remarks == ()
    assert [picture.loras for picture in host.drawn] == [((cell.request.output, 1.0),) for cell in cells]
    assert "sks dog" in host.drawn[0].prompt and "ink style" in host.drawn[0].prompt
    assert sheet.file == host.folder / "sheet.png" and sheet.image.info["parameters"] == host.drawn[-1].tagged


def test_a_picture_that_fails_leaves_the_others(host):
    cells = run_matrix(matrix(), host)
    host.fails = "dog_clay"
    sheet = draw_sheet(cells, host)
    assert sheet is not None and sheet.pictures == 3 and "dog_clay" in sheet.remarks[0]
    host.fails = "lora:"
    with pytest.raises(HostError, match="was not drawn"):
        draw_sheet(cells, host)


def test_a_sheet_of_nothing_is_refused(host):
    with pytest.raises(ConfigError, match="No merge is there"):
        draw_sheet([], host)
    with pytest.raises(HostError, match="does not draw"):
        draw_sheet(run_matrix(matrix(), host), pico_host(host.folder))


def test_shards_share_the_pairs_and_collect_draws_what_is_there(host):
    whole = [pair.output for pair in matrix().pairs()]
    first, second = ([pair.output for pair in matrix(shard=shard).pairs()] for shard in ("1/2", "2/2"))
    assert (first, second) == ([whole[0], whole[2]], [whole[1], whole[3]])
    with pytest.raises(OutputError, match="None of the 4"):
        require_ready(prepare_matrix(matrix(collect=True), host))
    assert states(run_matrix(matrix(shard="1/2"), host)) == dict.fromkeys(first, "done")
    collected = run_matrix(matrix(collect=True), host)
    assert states(collected) == {**dict.fromkeys(first, "exists"), **dict.fromkeys(second, "left")}
    assert draw_sheet(collected, host).pictures == 2
    for shard in ("1/2", "5/5"):  # all made, and more shards than pairs
        require_ready(prepare_matrix(matrix(shard=shard), host))


def test_a_pair_that_another_process_has_made_meanwhile_is_not_made_again(host):
    prepared = prepare_matrix(matrix(("dog",), ("ink",)), host)
    file = host.folder / "dog_ink.safetensors"
    file.write_bytes(b"another's")
    assert states(run_matrix(prepared, host)) == {"dog_ink": "exists"}
    assert file.read_bytes() == b"another's"


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_no_shard(shard):
    with pytest.raises(ConfigError, match="I/N"):
        matrix(shard=shard)


@pytest.mark.parametrize("more", [{"sheet": True}, {"collect": True}], ids=str)
def test_a_shard_draws_and_collects_nothing(more):
    with pytest.raises(ConfigError, match="collect draws it"):
        matrix(shard="1/2", **more)
