"""How long it takes until something happens: --help, an import, the first token. Ours and the peers', in turns.

Every command is a new process; the first round, which fills the disk cache, is not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measure import Sample, arguments, interleaved, median, spread, table, write_json

FIRST_TOKEN = """
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = PreTrainedTokenizerFast.from_pretrained({folder!r})
made = model.generate(**tokenizer("t1 t2", return_tensors="pt", return_token_type_ids=False), max_new_tokens=1)
print(tokenizer.decode(made[0]))
"""


def commands(folder: str) -> dict[str, list[str]]:
    """What is run, by name."""
    python, scripts = sys.executable, Path(sys.executable).parent
    known = {
        "python": [python, "-c", ""],
        "longthought --help": [str(scripts / "longthought"), "--help"],
        "trl --help": [str(scripts / "trl"), "--help"],
        "import longthought": [python, "-c", "import longthought"],
        "import transformers": [python, "-c", "import transformers"],
        "import torch": [python, "-c", "import torch"],
        "longthought: Engine, RL": [python, "-c", "from longthought import RL, Engine"],
        "transformers: AutoModelForCausalLM": [python, "-c", "from transformers import AutoModelForCausalLM"],
        "trl: GRPOTrainer": [python, "-c", "from trl import GRPOTrainer"],
        "longthought: first token": [
            *(str(scripts / "longthought"), "sample", folder, "--prompt", "t1 t2", "--max-tokens", "1")
        ],
        "transformers: first token": [python, "-c", FIRST_TOKEN.format(folder=folder)],
    }
    return {name: command for name, command in known.items() if "trl" not in name or find_spec("trl")}


def run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = arguments(__doc__, threads=None, repetitions=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", _WRITE, folder], check=True, cwd=Path(__file__).parent)
        sides = {name: (lambda command=command: run(command)) for name, command in commands(folder).items()}
        counted = interleaved(sides, options.repetitions + 1)
    samples: dict[str, list[Sample]] = {name: each[1:] for name, each in counted.items()}
    rows = [
        (name, spread([s.wall for s in each], ".2f"), f"{median([s.cpu for s in each]):.2f}")
        for name, each in samples.items()
    ]
    table(("command", "wall s", "CPU s"), rows)
    write_json(options.json, options, samples)


_WRITE = """
import sys
from pathlib import Path
from peer import random_model, write_folder
write_folder(random_model("4m"), Path(sys.argv[1]), stop=(1023,))
"""

if __name__ == "__main__":
    main()
