"""Whatever is wrong with a model folder is told as a CheckpointError that names the file, before memory is taken."""

import json
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import change_json, header_of, read, sound_folder, store, write_json, write_raw

from longthought.core.errors import CheckpointError
from longthought.models import weights
from longthought.models.parts import Experts, Latent
from longthought.models.rope import YarnScaling

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NORM = "model.norm.weight"
Damage = Callable[[Path], object]


def header(change: Callable[[dict], object]) -> Damage:
    """The header of the weights, changed; the numbers as they were."""

    def damage(folder: Path) -> None:
        found, numbers = header_of(folder / WEIGHTS)
        change(found)
        write_raw(folder / WEIGHTS, found, numbers)

    return damage


def entry(**change: object) -> Damage:
    return header(lambda found: found[NORM].update(change))


def raw(data: bytes) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


def length(value: int) -> Damage:
    return lambda folder: write_raw(folder / WEIGHTS, *header_of(folder / WEIGHTS), length=value)


def config(text: str | bytes) -> Damage:
    return lambda folder: (folder / CONFIG).write_bytes(text.encode() if isinstance(text, str) else text)


def shape(**change: object) -> Damage:
    return lambda folder: change_json(folder / CONFIG, **change)


def sparse(name: str, size: int) -> Damage:
    def damage(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return damage


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-4])


def longer(folder: Path) -> None:
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"1234")


def sparse_header(folder: Path) -> None:
    with open(folder / WEIGHTS, "wb") as file:
        file.write((2**30).to_bytes(8, "little") + b"{}")
        file.truncate(2**31)


def tensors(change: Callable[[dict], object]) -> Damage:
    """Other tensors in a file that is sound."""

    def damage(folder: Path) -> None:
        found = weights.state(read(folder))
        change(found)
        store(folder / WEIGHTS, found)

    return damage


WHOLE: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "neither model.safetensors nor"),
    "a pickle": (instead(WEIGHTS, lambda f: f.with_name("pytorch_model.bin").write_bytes(b"x")), "safe_serialization"),
    "only a LoRA": (instead(WEIGHTS, lambda f: f.with_name("adapter_config.json").write_text("{}")), "LoRA"),
    "empty": (raw(b""), "cut short"),
    "seven bytes": (raw(b"1234567"), "cut short"),
    "cut": (cut, "cut short"),
    "longer": (longer, "belong to no tensor"),
    "header cut": (raw((1000).to_bytes(8, "little") + b"{"), "cut short"),
    "header of 2^60": (length(2**60), "cut short"),
    "header of 2^64 - 1": (length(2**64 - 1), "cut short"),
    "huge header": (sparse_header, "larger than the format"),
    "header of no length": (length(0), "JSON"),
    "header is no JSON": (lambda f: write_raw(f / WEIGHTS, b"{'a': 1}", b""), "JSON"),
    "header is no text": (lambda f: write_raw(f / WEIGHTS, b"\xff\xfe{}", b""), "not text"),
    "header is a list": (lambda f: write_raw(f / WEIGHTS, b"[]", b""), "JSON object"),
    "header is empty": (lambda f: write_raw(f / WEIGHTS, b"{}", b""), "lacks model.embed_tokens"),
    "header is nested": (lambda f: write_raw(f / WEIGHTS, b'{"a":' * 10**5, b""), "nested"),
    "twice in a header": (lambda f: write_raw(f / WEIGHTS, b'{"a": {}, "a": {}}', b""), "twice"),
    "an entry is a number": (header(lambda h: h.update({NORM: 3})), "describes 'model.norm.weight' by 3"),
    "an entry lacks its shape": (header(lambda h: h[NORM].pop("shape")), "describes"),
    "integers": (entry(dtype="I32"), "I32.*F32, F16, BF16"),
    "other eight bits": (entry(dtype="F8_E5M2"), "F8_E5M2.*F8_E4M3"),
    "eight bits": (entry(dtype="F8_E4M3"), "does not fit its place"),
    "no type": (entry(dtype="float"), "'float'"),
    "type is a list": (entry(dtype=["F32"]), "F32"),
    "negative shape": (entry(shape=[-32]), "-32"),
    "shape of floats": (entry(shape=[32.0]), "32.0"),
    "shape of truths": (entry(shape=[True]), "True"),
    "shape is a number": (entry(shape=32), "shape 32"),
    "shape overflows": (entry(shape=[2**62, 2**62]), "does not fit its place"),
    "shape of 10^30": (entry(shape=[10**30]), "1000"),
    "many axes": (entry(shape=[1] * 10**5), "shape"),
    "negative offsets": (entry(data_offsets=[-128, 0]), "-128"),
    "offsets reversed": (entry(data_offsets=[128, 0]), "does not fit"),
    "offsets far away": (entry(data_offsets=[2**40, 2**40 + 128]), "gap|cut short"),
    "overlap": (entry(data_offsets=[0, 128]), "overlaps"),
    "three offsets": (entry(data_offsets=[0, 64, 128]), "128"),
    "a tensor too few": (tensors(lambda t: t.pop(NORM)), "lacks model.norm.weight"),
    "a tensor too many": (tensors(lambda t: t.update({"../x": t[NORM]})), r"holds '\.\./x'"),
    "another width": (tensors(lambda t: t.update({NORM: torch.ones(31)})), "31"),
    "both prefixes": (
        tensors(lambda t: t.update({"embed_tokens.weight": t[NORM], "norm.weight": t[NORM]})),
        "holds .embed_tokens",
    ),
    "not a number": (tensors(lambda t: t[NORM].fill_(float("nan"))), "model.norm.weight holds numbers that are not"),
    "infinite": (tensors(lambda t: t[NORM].fill_(float("-inf"))), "not finite"),
    "fifo": (instead(WEIGHTS, os.mkfifo), "not a regular file"),
    "folder": (instead(WEIGHTS, Path.mkdir), "not a regular file"),
    "link out": (instead(WEIGHTS, lambda f: f.symlink_to("/etc/passwd")), "link out of its folder"),
    "link to a device": (instead(WEIGHTS, lambda f: f.symlink_to("/dev/zero")), "link out"),
    "link to nothing": (instead(WEIGHTS, lambda f: f.symlink_to("gone")), "link to nothing"),
    "link to itself": (instead(WEIGHTS, lambda f: f.symlink_to(WEIGHTS)), "cannot be read"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "config.json is missing"),
    "config is empty": (config(""), "JSON"),
    "config is no JSON": (config("{model_type: llama}"), "JSON"),
    "config is a list": (config("[1, 2]"), "holds no JSON object but a list"),
    "config is binary": (config(b"\x80\x81"), "not text in UTF-8"),
    "config with NaN": (config('{"model_type": "llama", "rms_norm_eps": NaN}'), "NaN"),
    "config with 1e999": (config('{"model_type": "llama", "rms_norm_eps": 1e999}'), "too large"),
    "config with long number": (config('{"hidden_size": ' + "9" * 10**5 + "}"), "JSON"),
    "config nested": (config('{"a":' * 10**6), "nested"),
    "config nested lists": (config("[" * 10**6), "nested"),
    "config says it twice": (config('{"model_type": "llama", "model_type": "qwen3"}'), "twice"),
    "config of a gigabyte": (sparse(CONFIG, 2**30), "larger than"),
    "config is a folder": (instead(CONFIG, Path.mkdir), "not a regular file"),
    "config is a fifo": (instead(CONFIG, os.mkfifo), "not a regular file"),
    "config links out": (instead(CONFIG, lambda f: f.symlink_to("/etc/hostname")), "link out"),
    "10^18 wide": (shape(hidden_size=10**18), "config says .*1000000000000000000"),
    "10^12 layers": (shape(num_hidden_layers=10**12), "lacks model.layers.2"),
    "10^12 words": (shape(vocab_size=10**12), "embed_tokens"),
    "fewer words": (shape(vocab_size=22), r"shape \[23, 32\], config says \[22, 32\]"),
    "fewer layers": (shape(num_hidden_layers=1), "holds 'model.layers.1"),
    "10^12 positions": (shape(max_position_embeddings=10**12), "positions"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_damaged_folder_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    damage, said = WHOLE[kind]
    sound_folder(tmp_path)
    read(tmp_path)
    damage(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=said) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # half a GiB, in KiB


def index(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / INDEX).read_text())
        change(found)
        write_json(folder / INDEX, found)

    return damage


def place(name: object) -> Damage:
    return index(lambda found: found["weight_map"].update({NORM: name}))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def duplicate(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())


SHARDED: dict[str, tuple[Damage, str]] = {
    "path up": (place("../../etc/passwd"), "no safetensors file"),
    "path up, named well": (place("../model.safetensors"), "is no file name"),
    "absolute path": (place("/tmp/model.safetensors"), "is no file name"),
    "path down": (place("sub/model.safetensors"), "is no file name"),
    "backslashes": (place("..\\model.safetensors"), "is no file name"),
    "control characters": (place("\x1b[2J\0.safetensors"), "is no file name"),
    "a pickle": (place("pytorch_model.bin"), "no safetensors file"),
    "a number": (place(3), "no safetensors file"),
    "missing file": (place("model-9.safetensors"), "model-9.safetensors is missing"),
    "wrong shard": (lambda f: place(first_shard(f).name)(f), "lacks, named by|holds, unknown to"),
    "not in the index": (index(lambda found: found["weight_map"].pop(NORM)), "holds, unknown to"),
    "in two shards": (duplicate, "holds, unknown to|lacks, named by"),
    "only in the index": (index(lambda found: found["weight_map"].update(x=found["weight_map"][NORM])), "lacks"),
    "no map": (index(lambda found: found.pop("weight_map")), "no weight_map"),
    "map is a list": (index(lambda found: found.update(weight_map=[1])), "no weight_map"),
    "map is empty": (index(lambda found: found.update(weight_map={})), "no weight_map"),
    "size lies": (index(lambda found: found["metadata"].update(total_size=10**15)), "total_size"),
    "index is a list": (lambda f: write_json(f / INDEX, [1]), "JSON object"),
    "index of a gigabyte": (sparse(INDEX, 2**30), "larger than"),
    "shard cut": (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:-1]), "cut short"),
    "shard gone": (lambda f: first_shard(f).unlink(), "missing"),
    "shard links out": (lambda f: instead(first_shard(f).name, lambda x: x.symlink_to("/etc/passwd"))(f), "link out"),
}


@pytest.mark.parametrize("kind", SHARDED)
def test_a_damaged_index_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    damage, said = SHARDED[kind]
    sound_folder(tmp_path, shard_bytes=10_000)
    read(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_may_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    sound_folder(tmp_path)
    (tmp_path / name).chmod(0)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        read(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is missing"):
        read(tmp_path / "nowhere")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    sound_folder(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    change_json(tmp_path / CONFIG, auto_map={"AutoModelForCausalLM": "code.Model"}, trust_remote_code=True)
    read(tmp_path)
    change_json(tmp_path / CONFIG, model_type="new")
    with pytest.raises(CheckpointError, match="never run"):
        read(tmp_path)


def test_a_model_that_does_not_fit_the_machine_is_not_begun(tmp_path: Path) -> None:
    """A sound file of a tebibyte of zeros takes no place on the disk."""
    sound_folder(tmp_path, tie_word_embeddings=True)
    found, numbers = header_of(tmp_path / WEIGHTS)
    embedding, words = found["model.embed_tokens.weight"], 2**33
    start, end = embedding["data_offsets"]
    for other in (entry for name, entry in found.items() if name != "__metadata__"):
        if other["data_offsets"][0] >= end:
            other["data_offsets"] = [place - end + start for place in other["data_offsets"]]
    rest = len(numbers) - (end - start)
    embedding |= {"shape": [words, 32], "data_offsets": [rest, rest + words * 32 * 4]}
    write_raw(tmp_path / WEIGHTS, found, b"")
    with open(tmp_path / WEIGHTS, "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + rest + words * 32 * 4)
    change_json(tmp_path / CONFIG, vocab_size=words)
    with pytest.raises(CheckpointError, match=r"weights take 1,024.0 GiB in torch.float32; this machine has"):
        read(tmp_path)


DEEPSEEK = {
    "qk_norm": False,
    "latent": Latent(2, 2, 2, 2),
    "experts": Experts(2, 1, 2, 1, dense_layers=(0,)),
    "num_nextn_predict_layers": 1,
    "rope_scaling": YarnScaling(4.0, 16, mscale=1.0),
}


@pytest.fixture(scope="module", params=[{"head_dim": 2}, DEEPSEEK], ids=["qwen3", "deepseek_v3"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    sound_folder(folder, hidden_size=8, intermediate_size=8, **request.param)
    return folder


@given(data=st.data(), name=st.sampled_from([WEIGHTS, CONFIG]))
@settings(max_examples=150, deadline=None)
def test_no_damage_gives_another_error(data: st.DataObject, name: str, sound: Path) -> None:
    """Bytes of the header or the config are replaced, removed or put in."""
    whole = (sound / name).read_bytes()
    text = 8 + int.from_bytes(whole[:8], "little") if name == WEIGHTS else len(whole)
    start = data.draw(st.integers(0, text - 1))
    end = data.draw(st.integers(start, min(start + 4, text)))
    put = data.draw(
        st.binary(max_size=4) | st.sampled_from([b"-", b"9", b"0", b'"', b"[", b"}", b"null", b"e9", b"true"])
    )
    try:
        (sound / name).write_bytes(whole[:start] + put + whole[end:])
        with suppress(CheckpointError):
            read(sound)
    finally:
        (sound / name).write_bytes(whole)
