"""Finding models: the names of every store, and stores that are damaged or hostile."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.errors import ModelError
from llama_chat.library import Model, find_model, installed_models, remove
from llama_chat.library.layouts import group_gguf, identify_folder

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(*paths: Path, data: bytes = b"GGUF....") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def own(home: Path) -> Path:
    return home / ".local/share/llama-chat/models"


def cached(home: Path, repository: str, commit: str = COMMIT) -> Path:
    name = repository.replace("/", "--")
    return home / f".cache/huggingface/hub/models--{name}/snapshots/{commit}"


def pulled(store: Path, name: str, digit: str = "1", magic: bytes = b"GGUF") -> Path:
    """Write a model ``host/namespace/model/tag`` to a store of ollama; returns its blob."""
    digest, config = digit * 64, "f" * 64
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "e" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    kind = "application/vnd.docker.container.image.v1+json"
    manifest = {"config": {"mediaType": kind, "digest": f"sha256:{config}"}, "layers": layers}
    write(store / "manifests" / name, data=json.dumps(manifest).encode())
    write(store / f"blobs/sha256-{config}", data=b'{"file_type": "Q4_K_M"}')
    write(store / f"blobs/sha256-{digest}", data=magic + bytes(100))
    return store / f"blobs/sha256-{digest}"


def names(*search_paths: Path) -> dict[str, Model]:
    return {model.name: model for model in installed_models(list(map(str, search_paths)))}


def test_every_store_has_its_names(home: Path) -> None:
    ours, hub, lm = own(home), cached(home, "meta/llama"), home / ".lmstudio/models"
    write(ours / "plain/params.json", ours / "plain/consolidated.00.pth")
    write(ours / "one/a.Q4_0.gguf", ours / "loose.gguf")
    write(ours / "org/two/b-Q8_0.gguf", ours / "org/two/b-Q4_K_M.gguf")
    write(hub / "config.json", hub / "model.safetensors")
    write(lm / "pub/repo/c-Q2_K.gguf", home / ".cache/lm-studio/models/pub/old/d.gguf")
    blob = pulled(home / ".ollama/models", "host/library/llama3/8b")
    write(home / "mine/sub/e.gguf", home / "mine/stories/tokenizer.bin")
    write(home / "mine/stories/stories15M.bin")
    found = names(home / "mine")
    assert {name: (model.kind, model.source) for name, model in found.items()} == {
        "loose": ("GGUF", "own"),
        "one": ("GGUF Q4_0", "own"),
        "org/two:Q4_K_M": ("GGUF Q4_K_M", "own"),
        "org/two:Q8_0": ("GGUF Q8_0", "own"),
        "plain": ("Meta", "own"),
        "meta/llama": ("Hugging Face", "hub"),
        "llama3:8b": ("GGUF Q4_K_M", "ollama"),
        "pub/repo/c-Q2_K": ("GGUF Q2_K", "lm-studio"),
        "pub/old/d": ("GGUF", "lm-studio"),
        "stories/stories15M": ("llama2.c", "path"),
        "sub/e": ("GGUF", "path"),
    }
    assert found["llama3:8b"].path == blob
    assert found["llama3:8b"].n_bytes == 104
    assert found["meta/llama"].path == hub
    for name, model in found.items():
        assert find_model(name, [str(home / "mine")]) == model.path
        assert find_model(f"{model.source}:{name}", [str(home / "mine")]) == model.path


def test_other_spellings_of_names_are_understood(home: Path) -> None:
    ours = own(home) / "org/two"
    write(ours / "b-Q8_0.gguf", ours / "Q4_K_M/b-Q4_K_M.gguf", own(home) / "one/a.Q4_0.gguf")
    blob = pulled(home / ".ollama/models", "host/library/llama3/latest")
    theirs = pulled(home / ".ollama/models", "host/someone/llama3/latest", "2")
    assert find_model("org/two") == ours / "Q4_K_M/b-Q4_K_M.gguf"  # as pull would choose
    assert find_model("org/two:Q4_K_M") == find_model("org/two")
    assert find_model("one:Q4_0").name == "a.Q4_0.gguf"
    assert find_model("llama3") == find_model("llama3:latest") == blob
    assert find_model("host/library/llama3:latest") == blob
    assert find_model("someone/llama3") == theirs


def test_of_models_of_one_name_ours_comes_first_and_the_others_are_qualified(home: Path) -> None:
    mine, more = home / "mine", home / "more"
    write(own(home) / "org/name/x.gguf", cached(home, "org/name") / "x.gguf")
    write(mine / "org/name.gguf", more / "org/name.gguf")
    assert {name: model.source for name, model in names(mine, more).items()} == {
        "org/name": "own",
        "hub:org/name": "hub",
        "path:org/name": "path",
        f"{more}/org/name.gguf": "path",
    }
    assert find_model("hub:org/name") == cached(home, "org/name") / "x.gguf"


def test_the_main_revision_has_the_plain_name(home: Path) -> None:
    for commit in (COMMIT, OTHER, "c" * 40):
        write(cached(home, "org/name", commit) / "x.gguf")
    refs = cached(home, "org/name").parent.parent / "refs"
    write(refs / "main", data=OTHER.encode())
    write(refs / "v2", data=COMMIT.encode())
    assert {name: model.path.parent.name for name, model in names().items()} == {
        "org/name": OTHER,
        "org/name@v2": COMMIT,
        "org/name@cccccccc": "c" * 40,
    }


@pytest.mark.parametrize(
    ("variable", "value", "hub"),
    [
        ("HF_HUB_CACHE", "x", "x"),
        ("HF_HOME", "x", "x/hub"),
        ("XDG_CACHE_HOME", "x", "x/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    variable: str, value: str, hub: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(home / value))
    write(home / hub / f"models--org--name/snapshots/{COMMIT}/x.gguf")
    assert set(names()) == {"org/name"}


def test_split_files_are_one_model_and_incomplete_ones_are_none(home: Path) -> None:
    folder = home / ".lmstudio/models/pub/repo"
    write(*(folder / f"big-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)))
    write(*(folder / f"cut-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 3)))
    write(*(folder / name for name in ("mmproj-F16.gguf", "x-lora.gguf", ".y.gguf", "z.gguf.part")))
    found = names()
    assert set(found) == {"pub/repo/big-Q4_K_M"}
    assert found["pub/repo/big-Q4_K_M"].n_bytes == 24
    assert found["pub/repo/big-Q4_K_M"].path.name == "big-Q4_K_M-00001-of-00003.gguf"


def test_damaged_and_hostile_stores_are_ignored(home: Path) -> None:
    store, hub = home / ".ollama/models", cached(home, "org/name")
    for n, data in enumerate(
        [b"", b"{", b"[]", b"7", b"[" * 100_000, b'{"layers": 7}', b'{"layers": [7, {}]}', b"\xff"]
    ):
        write(store / f"manifests/host/library/bad/{n}", data=data)
    outside = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]
    write(store / "manifests/host/library/out/a", data=json.dumps({"layers": outside}).encode())
    os.mkfifo(store / "manifests/host/library/out/pipe")
    pulled(store, "host/library/page/latest", "3", magic=b"<htm")
    write(own(home) / "real/a.gguf")
    (own(home) / "loop").symlink_to(own(home))
    (own(home) / "real/again").symlink_to(own(home) / "real")
    (own(home) / "nowhere.gguf").symlink_to("/nowhere/at/all")
    (own(home) / "circle.gguf").symlink_to(own(home) / "circle.gguf")
    os.mkfifo(own(home) / "pipe.gguf")
    write(hub / "config.json", hub / "model-00001-of-00002.safetensors")
    write(home / ".cache/huggingface/hub/models--file", home / ".lmstudio/models")
    write(cached(home, "org/adapter") / "config.json")
    write(cached(home, "org/adapter") / "adapter_model.safetensors")
    write(hub.parent.parent / "refs/main", data=b"\x1b[31m" * 1000)
    assert set(names(home / "nowhere", home / ("x" * 5000), Path("\0"))) == {"real"}


def test_hundreds_of_models_are_found_quickly(home: Path) -> None:
    for n in range(300):
        snapshot = cached(home, f"org/model-{n}")
        write(snapshot / "config.json", snapshot / "model.safetensors")
    (home / "many").mkdir()
    for n in range(2000):
        os.mknod(home / f"many/{n}.txt")
    began = time.process_time()
    assert len(names(home / "many")) == 300
    assert time.process_time() - began < 0.3


def test_the_error_for_an_unknown_model_names_a_next_step(home: Path) -> None:
    with pytest.raises(ModelError, match="llama-chat pull smollm2-135m"):
        find_model("nothing")
    with pytest.raises(ModelError, match=r"check the path, or .*: llama-chat pull org/name"):
        find_model("org/name")
    write(own(home) / "mellow-7b/a.gguf")
    with pytest.raises(ModelError, match=r"did you mean mellow-7b\?"):
        find_model("mello-7b")
    with pytest.raises(ModelError, match="llama-chat models lists what is here"):
        find_model("entirely-different")


def test_removing_a_model_takes_its_files_and_no_others(home: Path) -> None:
    ours = own(home) / "org/name"
    write(*(ours / f"x-Q4_0-0000{n}-of-00002.gguf" for n in (1, 2)))
    write(ours / "x-Q8_0.gguf", home / "elsewhere/y/z.gguf")
    write(home / "elsewhere/params.json", home / "elsewhere/consolidated.00.pth")
    (own(home) / "linked").symlink_to(home / "elsewhere")
    found = names()
    assert set(found) == {"org/name:Q4_0", "org/name:Q8_0", "linked", "linked/y"}
    remove(found["org/name:Q4_0"])
    assert [path.name for path in ours.iterdir()] == ["x-Q8_0.gguf"]
    remove(found["org/name:Q8_0"])
    remove(found["linked"])
    assert list(own(home).iterdir()) == []
    assert (home / "elsewhere/params.json").exists()


NAMES = st.lists(
    st.from_regex(r"\A[\w.-]{0,6}(Q4_K_M|F16|-0000[12]-of-00002|mmproj)?\.(gguf|json|bin)\Z")
    | st.sampled_from(["config.json", "model.safetensors", "params.json", "a/b.gguf"])
    | st.text(max_size=8)
)


@settings(max_examples=50)
@given(NAMES)
def test_each_file_belongs_to_one_model_at_most(files: list[str]) -> None:
    models = group_gguf(set(files))
    used = [path for model in models for path in model.files]
    assert len(used) == len(set(used))
    assert set(used) <= set(files)
    if (selected := identify_folder(set(files))) is not None:
        assert {*selected[1].config, *selected[1].weights} <= set(files)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama-2-7b-chat.Q4_K_M", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.q8_0", "Q8_0"),
        ("Model-IQ2_XXS", "IQ2_XXS"),
        ("Model-UD-Q4_K_XL", "Q4_K_XL"),
        ("Model-F16-Q4_0_4_4", "Q4_0_4_4"),
        ("model-bf16", "BF16"),
        ("stories260K", ""),
        ("BQ4_0X", ""),
    ],
)
def test_quantizations_are_read_from_names(name: str, quantization: str) -> None:
    assert [model.quantization for model in group_gguf([f"{name}.gguf"])] == [quantization]


def selected_files(names: set[str]) -> tuple[str, tuple[str, ...], tuple[str, ...], bool]:
    found = identify_folder(names)
    assert found is not None
    kind, files = found
    return kind.name, files.config, files.weights, files.is_complete


def test_weights_of_torch_count_if_there_is_no_safetensors_file() -> None:
    names = {"config.json", "tokenizer.json", "training_args.bin"}
    config = ("config.json", "tokenizer.json")
    parts = tuple(f"pytorch_model-{i:05}-of-00002.bin" for i in (1, 2))
    index = "pytorch_model.bin.index.json"
    whole = selected_files({*names, "pytorch_model.bin"})
    assert whole == ("Hugging Face", config, ("pytorch_model.bin",), True)
    with_index = ("config.json", index, "tokenizer.json")
    in_parts = selected_files({*names, index, *parts})
    assert in_parts == ("Hugging Face", with_index, parts, True)
    assert selected_files({*names, index, parts[0]})[2:] == (parts[:1], False)
    assert selected_files({*names, *parts})[3] is False  # without an index it cannot be loaded
    both = selected_files({*names, index, *parts, "model.safetensors"})
    assert both == ("Hugging Face", config, ("model.safetensors",), True)


def test_what_is_listed_is_what_can_be_loaded() -> None:
    meta = {"params.json", "consolidated.00.pth", "consolidated.01.pth"}
    assert selected_files({*meta, "config.json"})[0] == "Meta"
    assert selected_files(meta)[3] is True
    assert selected_files(meta - {"consolidated.00.pth"})[3] is False
    assert selected_files({"params.json"})[3] is False
    assert selected_files({"config.json", "adapter_model.safetensors"})[2:] == ((), False)
    assert identify_folder({"weights.safetensors", "README.md"}) is None
