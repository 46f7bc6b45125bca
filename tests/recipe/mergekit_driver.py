"""Runs in mergekit's own interpreter: every recipe of a folder, in one process. Not imported by the tests.

mergekit 0.1.5 stops at BERT (an error of its own over optional weights), so what is called bert* goes through its
command for raw files, which has the same arithmetic and no layers.
"""

import json
import sys
import traceback
from pathlib import Path

# mergekit imports transformers, and that stops at a torchvision built for another torch; none is needed here.
sys.modules["torchvision"] = None  # type: ignore[assignment]

import yaml  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.io.tasks import LoaderCache  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402
from mergekit.scripts.merge_raw_pytorch import main as merge_files  # noqa: E402

recipes, out = Path(sys.argv[1]), Path(sys.argv[2])
OPTIONS = {
    "copy_tokenizer": True,
    "quiet": True,
    "write_model_card": False,
    "lora_merge_cache": str(out / "lora"),
}


def raw(recipe: dict, folder: Path) -> None:
    for entry in recipe["models"]:
        entry["model"] += "/model.safetensors"
    if "base_model" in recipe:
        recipe["base_model"] += "/model.safetensors"
    file = out / f"{folder.name}.json"
    file.write_text(json.dumps(recipe))
    merge_files.main(args=[str(file), str(folder)], standalone_mode=False)


for path in sorted(recipes.glob("*.yml")):
    try:
        recipe, folder = yaml.safe_load(path.read_text()), out / path.stem
        if path.stem.startswith("bert"):
            raw(recipe, folder)
        else:
            LoaderCache().loaders.clear()
            run_merge(MergeConfiguration.model_validate(recipe), str(folder), MergeOptions(**OPTIONS))
    except Exception:  # noqa: BLE001 - whatever it is, the test tells it
        (out / f"{path.stem}.error").write_text(traceback.format_exc())
