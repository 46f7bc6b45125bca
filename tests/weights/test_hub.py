"""The hub's own client, against a hub of one model that this process serves."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isthmus
from isthmus import weights
from isthmus.errors import InputError, WeightsError
from isthmus.recipe.again import plan_again

hub = pytest.importorskip("huggingface_hub")

REVISIONS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for."""

    root: Path
    fetched: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        kind, *parts = self.path.partition("?")[0].strip("/").split("/")
        if kind == "api":
            self._described(parts)
            return
        name, _, commit, *rest = parts
        file = self.root / kind / name / commit / "/".join(rest)
        if not file.is_file():
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content, asked = file.read_bytes(), self.headers.get("Range")
        if self.command == "GET":
            self.fetched.append(f"{commit[0]}/{'/'.join(rest)}{'' if asked is None else '[:]'}")
        if asked is not None:
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            self._answer(
                206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"}
            )
            return
        self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hash(content):x}"'})

    def _described(self, parts: list[str]) -> None:
        repository, revision = self.root / "/".join(parts[1:3]), (parts[4:] or ["main"])[0]
        commit = REVISIONS.get(revision, revision)
        if len(parts) < 3 or not (repository / commit).is_dir():
            what = "RevisionNotFound" if repository.is_dir() else "RepoNotFound"
            self._answer(404, b"{}", {"X-Error-Code": what})
            return
        files = [p for p in sorted((repository / commit).rglob("*")) if p.is_file()]
        names = [str(p.relative_to(repository / commit)) for p in files]
        tree = [
            {"type": "file", "path": name, "size": p.stat().st_size, "oid": "0" * 40}
            for name, p in zip(names, files, strict=True)
        ]
        told = {
            "id": "/".join(parts[1:3]),
            "sha": commit,
            "siblings": [{"rfilename": name} for name in names],
        }
        self._answer(200, json.dumps(tree if parts[3:4] == ["tree"] else told).encode(), {})

    def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    for value, commit in enumerate(REVISIONS.values(), start=1):
        folder = tmp_path / "repositories" / "org" / "name" / commit
        for shard, tensor in enumerate("wu", start=1):
            weights.save({tensor: torch.full((2, 2), float(value))}, folder / f"model-{shard}.safetensors")
        index = {"weight_map": {"w": "model-1.safetensors", "u": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "pytorch_model.bin").write_bytes(b"the same once more")
        weights.save({"w": torch.ones(9)}, folder / "original" / "consolidated.safetensors")
    Hub.root, Hub.fetched = tmp_path / "repositories", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    where = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", where)
    pattern = where + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", pattern)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield server
    server.shutdown()
    server.server_close()


RECIPE = "models: [{model: org/name}, {model: org/name@v2}]\nmerge_method: linear\nparameters: {weight: 1}\n"


def test_a_recipe_of_two_revisions(served: object):
    Path("recipe.yml").write_text(RECIPE)
    done = isthmus.plan("recipe.yml").run("out")
    assert weights.load(done.folder)["w"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    card = (done.folder / "README.md").read_text()
    assert '- "org/name"\n' in card and 'license: "mit"' in card and "| org/name@v2 | model |" in card
    # Only what is asked for: neither the same weights as a pickle nor those in folders.
    assert {name.partition("/")[2] for name in Hub.fetched if not name.endswith("[:]")} == {
        "README.md", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json",
    }  # fmt: skip


def test_a_plan_reads_headers_where_they_are(served: object, tmp_path: Path):
    Path("recipe.yml").write_text(RECIPE)
    plan = isthmus.plan("recipe.yml")
    assert [(row.name, row.shape) for row in plan.rows] == [("u", (2, 2)), ("w", (2, 2))]
    assert "org/name: 32 bytes are fetched from the hub when this runs" in plan.notes
    whole = {name for name in Hub.fetched if name.endswith("safetensors")}
    assert not whole and any(name.endswith("model-1.safetensors[:]") for name in Hub.fetched)
    assert not list((tmp_path / "cache").rglob("model-*.safetensors"))
    # A branch that has moved on since does not matter: the plan's commit is fetched.
    moved = Hub.root / "org" / "name" / ("c" * 40)
    weights.save({"w": torch.zeros(3)}, moved / "model.safetensors")
    REVISIONS["main"] = "c" * 40
    try:
        assert weights.load(plan.run("out").folder)["w"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    finally:
        REVISIONS["main"] = "a" * 40
    # Once it is here, the hub is not asked for headers.
    Hub.fetched.clear()
    Path("again.yml").write_text(RECIPE.replace("name}", f"name@{'a' * 40}}}"))
    assert "fetched" not in " ".join(isthmus.plan("again.yml").notes)
    assert not Hub.fetched


LORA = "models: [{model: org/name+org/lora}]\nmerge_method: passthrough\n"


@pytest.fixture
def adapter(served: object) -> Path:
    """An adapter of the model, on the hub as well."""
    factors = {"lora_A": torch.ones(1, 2), "lora_B": torch.full((2, 1), 3.0)}
    folder = Hub.root / "org" / "lora" / REVISIONS["main"]
    named = {f"base_model.model.w.{name}.weight": factor for name, factor in factors.items()}
    weights.save(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["w"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    for commit in REVISIONS.values():  # a weight that an adapter can be added to
        model = Hub.root / "org" / "name" / commit
        weights.save({"w.weight": torch.ones(2, 2)}, model / "model-1.safetensors")
        index = {"weight_map": {"w.weight": "model-1.safetensors", "u": "model-2.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_adapter_is_planned_from_its_headers(adapter: Path, tmp_path: Path):
    Path("recipe.yml").write_text(LORA)
    plan = isthmus.plan("recipe.yml")
    assert "org/name+org/lora: LoRA of rank 1 added to 1 tensors" in plan.notes
    assert "org/name+org/lora: 48 bytes are fetched from the hub when this runs" in plan.notes
    assert not {name for name in Hub.fetched if name.endswith("safetensors")}
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    done = plan.run("out")
    assert weights.load(done.folder)["w.weight"].tolist() == [[7, 7], [7, 7]]
    card = (done.folder / "README.md").read_text()
    assert '- "org/name"\n- "org/lora"\n' in card and "| org/name+org/lora | model |" in card
    # Made again from copies of what the hub gave, it tells of the hub as before.
    for parent in plan.parents.values():
        assert parent.adapter is not None
        for name, folder in (("name", parent.folder), ("lora", parent.adapter.path.parent)):
            shutil.copytree(folder, tmp_path / "copies" / name)
    plan_again(done.folder, tmp_path / "copies").run(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == card
    # Once it is here, the hub is not asked for its headers.
    Hub.fetched.clear()
    assert "fetched" not in " ".join(isthmus.plan("recipe.yml").notes)
    assert not {name for name in Hub.fetched if "adapter" in name}


def test_an_adapter_that_has_changed_since_it_was_planned_is_refused(adapter: Path):
    Path("recipe.yml").write_text(LORA)
    plan = isthmus.plan("recipe.yml")
    weights.save({"other": torch.ones(3)}, adapter / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"org/lora@a+ has other tensors than when it was planned"):
        plan.run("out")
    assert not Path("out").exists()


def test_what_is_no_adapter_is_refused_by_the_plan(adapter: Path, tmp_path: Path):
    Path("recipe.yml").write_text(LORA)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"it has no adapter_model\.safetensors") as caught:
        isthmus.plan("recipe.yml")
    assert "it is a pickle" in str(caught.value.hint)
    (adapter / "adapter_config.json").unlink()
    Path("other.yml").write_text(LORA.replace("org/lora", "org/name@v2"))
    with pytest.raises(InputError, match=r"it has no adapter_config\.json"):
        isthmus.plan("other.yml")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_has_no_safetensors_is_fetched_to_be_planned(served: object):
    for commit in REVISIONS.values():
        folder = Hub.root / "org" / "name" / commit
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
            file.unlink()
        torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    Path("recipe.yml").write_text(RECIPE)
    plan = isthmus.plan("recipe.yml")
    assert [row.name for row in plan.rows] == ["w"] and not any("fetched" in note for note in plan.notes)


def test_what_the_cache_has_is_not_asked_for_again(
    served: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert weights.load("org/name@v2")["u"].tolist() == [[2, 2], [2, 2]]
    served.shutdown()
    served.server_close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights.load("org/name@v2")["u"].tolist() == [[2, 2], [2, 2]]
    with pytest.raises(WeightsError, match="the hub does not give it"):
        weights.open("org/name@main")
    # A shard that was never fetched, or was removed since, is named.
    next((tmp_path / "cache").rglob("snapshots/b*/model-2.safetensors")).unlink()
    with pytest.raises(WeightsError, match=r"model-2\.safetensors"):
        weights.open("org/name@v2")


@pytest.mark.parametrize(("name", "why"), [("org/gone", "Repository"), ("org/name@v3", "Revision")])
def test_what_the_hub_has_not_is_named(name: str, why: str, served: object):
    with pytest.raises(WeightsError, match="the hub does not give it") as caught:
        weights.open(name)
    assert caught.value.where[0].startswith(f"{why}NotFoundError: 404")
    assert "revision" in str(caught.value.hint)
