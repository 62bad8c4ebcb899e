"""``longthought inspect``: what a model folder holds, and what the model costs."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from longthought.cli.parser import Parser, amount, at_least
from longthought.core.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from longthought.models.config import ModelConfig
    from longthought.models.safetensors_file import TensorFile

_CONTEXT = 4096
_WIDTHS = {"bfloat16": 2, "float32": 4}
_EPILOG = """sizes: 80GB is 80 × 1000³ bytes, 80GiB 80 × 1024³
exit codes: 0 done, 2 an error, also where the weights in the folder are damaged or not those of its config

  longthought inspect my-model
  longthought inspect my-model --memory 80GB --context 32768 --precision bfloat16
  longthought inspect config.json --json"""


def parser() -> Parser:
    """The command line of ``inspect``."""
    made = Parser(
        "inspect",
        "Print what a model is and costs: parameters, cache and FLOPs of a token, and how many sequences fit into a\n"
        "memory. The config.json is enough; of weights beside it the headers are read, and compared with it.",
        _EPILOG,
    )
    add = made.add_argument
    add("path", type=Path, metavar="FOLDER", help="a folder in Hugging Face layout, or a config.json alone")
    add("--context", type=at_least(1), metavar="N", help=f"tokens of a sequence (default: {_CONTEXT:,}, or all it has)")
    add("--memory", type=amount, metavar="SIZE", help="how many sequences fit into so much, for example 80GB")
    add("--precision", choices=tuple(_WIDTHS), help="of weights and cache in that memory (default: bfloat16)")
    add("--json", action="store_true", help="print JSON, and nothing else, to standard output")
    return made


def execute(arguments: Namespace) -> int:
    """Print. Weights that are not those of the config are an error, told after everything else."""
    if arguments.precision and arguments.memory is None:
        raise SettingsError("--precision changes nothing without --memory: the cache is printed in both")
    from longthought.cli.cost_view import facts, lines, weight_facts, weight_lines
    from longthought.core.files import CONFIG_LIMIT, read_json
    from longthought.models.config import ModelConfig
    from longthought.models.cost import fit

    path: Path = arguments.path
    file = path / "config.json" if path.is_dir() else path
    described = read_json(file.parent, file.name, CONFIG_LIMIT)
    config, kind = ModelConfig.from_hf(described, file), described["model_type"]
    context = _context(config, arguments.context)
    width = _WIDTHS[arguments.precision or "bfloat16"]
    room = None if arguments.memory is None else fit(config, arguments.memory, context, width)
    files, fault = _weights(config, path) if path.is_dir() else ([], None)
    if arguments.json:
        told = {**facts(kind, config, context, room), "weights": weight_facts(files, fault)}
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        print("\n".join([*lines(kind, config, context, room), "", *weight_lines(files, fault)]))
    if fault is not None:
        raise fault
    return 0


def _context(config: ModelConfig, asked: int | None) -> int:
    most = config.max_position_embeddings
    if asked is not None and asked > most:
        raise SettingsError(f"--context {asked}: the model has {most:,} positions (max_position_embeddings)")
    return min(_CONTEXT, most) if asked is None else asked


def _weights(config: ModelConfig, folder: Path) -> tuple[list[TensorFile], CheckpointError | None]:
    """The files with weights, if there are any, and what is wrong with them."""
    from longthought.core.files import exists
    from longthought.models.weights import INDEX, WHOLE, compare, open_folder

    files: list[TensorFile] = []
    if not (exists(folder, WHOLE) or exists(folder, INDEX)):
        return files, None
    try:
        files = open_folder(folder)
        compare(config, files)
    except CheckpointError as error:
        return files, error
    return files, None
