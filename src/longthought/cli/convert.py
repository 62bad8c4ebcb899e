"""``longthought convert``: write a model folder anew."""

from __future__ import annotations

import os
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from longthought.cli.parser import Parser, amount
from longthought.core.errors import CheckpointError, RunError, SettingsError

if TYPE_CHECKING:
    import torch

    from longthought.models.conversion import Conversion

_DTYPES = ("float32", "bfloat16", "float16")
_TOKENS = 16
_EPILOG = """sizes: 5GB is 5 × 1000³ bytes, 5GiB 5 × 1024³

  longthought convert DeepSeek-V3 DeepSeek-V3-bf16 --dtype bfloat16
  longthought convert my-model my-model-small-files --shard-size 500MB --check
  longthought convert my-model my-merged-model --adapter my-lora"""


def parser() -> Parser:
    """The command line of ``convert``."""
    made = Parser(
        "convert",
        "Read a model folder and write another one that transformers loads: another type of numbers, other shards,\n"
        "weights of eight bits multiplied by their scales, a LoRA merged. One tensor is in memory at a time. TARGET\n"
        "is whole or not there.",
        _EPILOG,
    )
    add = made.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder of a model in Hugging Face layout")
    add("target", type=Path, metavar="TARGET", help="folder to write")
    add("--dtype", choices=_DTYPES, help="of the numbers (default: that of most of them; bfloat16 for eight bits)")
    add("--shard-size", type=amount, default="5GB", metavar="SIZE", help="most bytes of one file (default: 5GB)")
    add("--adapter", type=Path, metavar="FOLDER", help="a LoRA in PEFT's format, to be merged")
    add("--check", action="store_true", help="load both folders in float32 and compare logits; needs their memory")
    add("--force", action="store_true", help="replace TARGET if it is a model folder")
    return made


def execute(arguments: Namespace) -> int:
    """Read, write, verify, print."""
    from longthought.runs.files import new_folder
    from longthought.runs.progress import progress

    source, target, adapter = arguments.source, arguments.target, arguments.adapter
    _refuse_target(target, [source] if adapter is None else [source, adapter], arguments.force)
    work = _conversion(source, arguments.dtype, adapter)
    _refuse_full_disk(work, target)
    print("\n".join(_read_lines(work, source)), flush=True)
    began, count = time.perf_counter(), len(work.written)
    with new_folder(Path(os.path.abspath(target))) as made:
        with progress("convert", count) as bar:
            done = iter(range(1, count + 1))
            work.write(made, arguments.shard_size, lambda: bar.update(next(done), {}))
        _write_rest(work, source, made)
        work.verify(made)
        compared = _compare(work, source, made) if arguments.check else ""
        written = _written_lines(work, made, target, compared)
    print("\n".join([*written, f"seconds   {time.perf_counter() - began:,.1f}"]))
    return 0


def _refuse_target(target: Path, sources: list[Path], force: bool) -> None:
    """Raise SettingsError before anything is read, if the target must not be written."""
    real = os.path.realpath(target)
    for source in sources:
        if not source.is_dir():
            raise CheckpointError(f"{source} is no folder: give the folder of a model or LoRA in Hugging Face layout")
        other = os.path.realpath(source)
        if os.path.commonpath((real, other)) in (real, other):
            raise SettingsError(f"{target} and {source} lie in each other: a folder is not written over what is read")
    if not os.path.lexists(target):
        return
    if not force:
        raise SettingsError(f"{target} exists: choose another name, or replace it with --force")
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not (target / "config.json").is_file()):
        raise SettingsError(f"{target} exists and is no model folder: it is not replaced, not even with --force")


def _conversion(source: Path, dtype: str | None, adapter: Path | None) -> Conversion:
    import torch

    from longthought.models.config import ModelConfig
    from longthought.models.conversion import Conversion, natural_type
    from longthought.models.reading import plan
    from longthought.models.weights import open_folder
    from longthought.runs.artifacts import Checkpoint

    config = ModelConfig.read(source)
    found = plan(config, open_folder(source))
    Checkpoint(source).verify()
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return Conversion(found, types[dtype] if dtype else natural_type(found), adapter)


def _refuse_full_disk(work: Conversion, target: Path) -> None:
    from longthought.cli.cost_view import size

    place = next(folder for folder in Path(os.path.abspath(target)).parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if work.bytes > free:
        raise RunError(f"{target} takes {size(work.bytes)}, and the disk has {size(free)} left: free space")


def _write_rest(work: Conversion, source: Path, made: Path) -> None:
    """Config, tokenizer, chat template, generation settings; and how the model was made, if the source knows it."""
    from longthought.core.files import exists, read_json, regular_file
    from longthought.runs.artifacts import CONFIG, GENERATION, PROVENANCE, Checkpoint
    from longthought.runs.files import digests, json_bytes, write_file
    from longthought.text.tokenizer_files import FILES

    config = work.config.to_hf(read_json(source, CONFIG), work.dtype)
    write_file(made / CONFIG, json_bytes(config, indent=2) + b"\n")
    for name in (GENERATION, *FILES):
        if exists(source, name):
            shutil.copyfile(regular_file(source, name), made / name)
    if told := Checkpoint(source).provenance():
        told |= {"converted": {"dtype": _name(work.dtype), "adapter": work.adapter and str(work.adapter)}}
        told["files"] = digests(made)
        write_file(made / PROVENANCE, json_bytes(told, indent=2) + b"\n")


def _compare(work: Conversion, source: Path, made: Path) -> str:
    """Logits of both folders. Raises CheckpointError if they differ though nothing was rounded."""
    import torch

    from longthought.models import lora, weights
    from longthought.models.config import ModelConfig

    shape = (1, min(_TOKENS, work.config.max_position_embeddings))
    tokens = torch.randint(work.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))

    def logits(folder: Path, adapter: Path | None) -> torch.Tensor:
        model = weights.load_folder(ModelConfig.read(folder), folder)
        if adapter is not None:
            lora.load(model, adapter)
        with torch.no_grad():
            return model.logits(tokens)

    ours, theirs = logits(made, None), logits(source, work.adapter)
    gap, most = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if gap and work.exact:
        raise CheckpointError(f"logits differ by {gap:.2e}, though no number was rounded; nothing was written")
    same = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    told = f"logits of {tokens.shape[1]} tokens differ by at most {gap:.2g}, the largest is {most:.3g}"
    return f"{told}; {100 * same:.0f} % of the likeliest tokens are equal"


def _read_lines(work: Conversion, source: Path) -> list[str]:
    from longthought.cli.cost_view import size
    from longthought.core.files import read_json
    from longthought.models.conversion import stored_types

    kind = read_json(source, "config.json")["model_type"]
    counts = stored_types(work.source).most_common()
    total = sum(count for _, count in counts)
    types = ", ".join(f"{_name(dtype)} ({100 * count / total:.2f} %)" for dtype, count in counts)
    files = {found.file.name: found.file for found in work.source.found.values()}
    taken = sum(entry.bytes for file in files.values() for entry in file.entries.values())
    lines = [f"read      {source}: {kind}, {_files(len(files))}, {size(taken)}, {types}"]
    return lines if work.adapter is None else [*lines, f"merged    {work.adapter}"]


def _written_lines(work: Conversion, made: Path, target: Path, compared: str) -> list[str]:
    from longthought.cli.cost_view import short, size
    from longthought.models.cost import main_parameters

    files, numbers = len(list(made.glob("*.safetensors"))), main_parameters(work.config)
    mtp = " and MTP modules" if work.config.num_nextn_predict_layers else ""
    lines = [
        f"written   {target}: {_files(files)}, {size(work.bytes)}, {_name(work.dtype)}, "
        f"{numbers:,} parameters ({short(numbers)}){mtp}",
        "verified  names, shapes and types in its headers are those of its config; all numbers are finite",
    ]
    return [*lines, f"compared  {compared}"] if compared else lines


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
