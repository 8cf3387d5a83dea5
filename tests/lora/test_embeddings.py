"""Embeddings that come in a LoRA's file become files of their own, and no other file is touched."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.lora.io.embeddings import bundled, save_embeddings
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.preflight import preflight

from ..support.pico_host import PicoHost, module_names, write_kohya

L, G = torch.arange(6.0).reshape(2, 3) / 7, torch.arange(10.0).reshape(2, 5) / 3


def bundle(path, word="sks", clip_l=L, clip_g=G, **more):
    tensors = {f"bundle_emb.{word}.clip_l": clip_l, f"bundle_emb.{word}.clip_g": clip_g, **more}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def saved(path, folder):
    return list(save_embeddings(path, load_file(path), folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_file_holds_the_two_tensors_that_every_webui_asks_for(tmp_path, dtype):
    path = bundle(tmp_path / "cat.safetensors", clip_l=L.to(dtype), clip_g=G.to(dtype))
    (said,) = saved(path, tmp_path / "embeddings" / "new")
    found = load_file(tmp_path / "embeddings" / "new" / "sks.safetensors")
    assert set(found) == {"clip_l", "clip_g"} and {t.dtype for t in found.values()} == {torch.float32}
    assert torch.equal(found["clip_l"], L.to(dtype).float())
    assert torch.equal(found["clip_g"], G.to(dtype).float())
    assert "cat: the embedding sks is saved as" in said and said.endswith("its word in prompts is sks.")


def test_a_name_that_is_taken_gets_a_number_and_the_same_embedding_is_saved_once(tmp_path):
    folder = tmp_path / "embeddings"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "SKS.pt").write_bytes(b"somebody's")
    path = bundle(tmp_path / "cat.safetensors")
    for _ in range(2):
        (said,) = saved(path, folder)
        assert said.endswith("its word in prompts is sks_2.")
    saved(bundle(tmp_path / "dog.safetensors", clip_l=2 * L), folder)
    files = {path.name: path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {"SKS.pt", "sks_2.safetensors", "sks_3.safetensors"}
    assert files["SKS.pt"].read_bytes() == b"somebody's"
    assert torch.equal(load_file(files["sks_3.safetensors"])["clip_l"], 2 * L)


@pytest.mark.parametrize(
    ("word", "name"),
    [("<sks dog>", "sks dog"), ("a.b", "a.b"), ("../up", "_up"), ("<>", "embedding"), ("..", "embedding")],
)
def test_a_word_that_no_file_can_have_becomes_one_that_it_can(tmp_path, word, name):
    (said,) = saved(bundle(tmp_path / "cat.safetensors", word), tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [f"{name}.safetensors"]
    assert f"the embedding {word} is saved" in said and said.endswith(f"is {name}.")


@pytest.mark.parametrize(
    ("clip_l", "clip_g"), [(L, None), (L[0], G), (L, G[:1]), (L[:0], G[:0]), (L / 0, G)], ids=lambda _: ""
)
def test_what_is_no_embedding_of_sdxl_is_said_and_not_saved(tmp_path, clip_l, clip_g):
    (said,) = saved(bundle(tmp_path / "cat.safetensors", clip_l=clip_l, clip_g=clip_g), tmp_path / "to")
    assert "is not saved" in said and not (tmp_path / "to").exists()


def test_an_older_models_form_is_one_embedding():
    assert bundled(["bundle_emb.sks.string_to_param.*", "bundle_emb.x", "other"]) == {
        "sks.string_to_param": {"*": "bundle_emb.sks.string_to_param.*"},
        "x": {"x": "bundle_emb.x"},
    }


@pytest.mark.parametrize("own", [False, True])
def test_a_merge_saves_them_where_it_is_asked_to(tmp_path, own):
    class Host(PicoHost):
        def embeddings_folder(self):
            return tmp_path / "embeddings"

    for number, name in enumerate(("dog", "ink")):
        plain = load_file(write_kohya(tmp_path / f"{name}.safetensors", module_names(), seed=number))
        bundle(tmp_path / f"{name}.safetensors", f"sks_{name}", clip_l=L + number, **plain)
    host = Host(tmp_path) if own else PicoHost(tmp_path)
    folder = tmp_path / "embeddings" if own else tmp_path
    request = MergeRequest.pair(
        LoraInput("dog", "a"), LoraInput("ink", "b"), "both", settings=MergeSettings(method="direct")
    )
    report = run(request, host)
    assert not (folder / "sks_dog.safetensors").exists()
    for name in ("dog", "ink"):
        assert f"{name} brings embeddings along (sks_{name})" in " ".join(report.warnings)
    assert set(report.warnings) >= set(preflight(request, host).remarks)
    settings = MergeSettings(method="direct", save_embeddings=True)
    report = run(MergeRequest(request.loras, "both", True, settings), host)
    assert "--save-embeddings" not in " ".join(report.warnings)
    for number, name in enumerate(("dog", "ink")):
        file = folder / f"sks_{name}.safetensors"
        assert torch.equal(load_file(file)["clip_l"], L + number)
        assert (
            f"{name}: the embedding sks_{name} is saved as {file}; its word in prompts is sks_{name}."
            in report.warnings
        )
    assert not any("bundle" in key for key in load_file(tmp_path / "both.safetensors"))


def test_a_folder_that_can_not_be_made_costs_the_embeddings_alone(tmp_path):
    class Host(PicoHost):
        def embeddings_folder(self):
            return tmp_path / "dog.safetensors" / "no"

    for number, name in enumerate(("dog", "ink")):
        plain = load_file(write_kohya(tmp_path / f"{name}.safetensors", module_names(), seed=number))
        bundle(tmp_path / f"{name}.safetensors", f"sks_{name}", **plain)
    request = MergeRequest.pair(
        LoraInput("dog", "a"),
        LoraInput("ink", "b"),
        "both",
        settings=MergeSettings(method="direct", save_embeddings=True),
    )
    report = run(request, Host(tmp_path))
    assert (tmp_path / "both.safetensors").is_file()
    assert any("The embeddings of dog are not all saved" in warning for warning in report.warnings)
