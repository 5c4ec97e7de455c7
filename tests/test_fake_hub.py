"""The stand-in answers the real `huggingface_hub` as the Hub would."""

from __future__ import annotations

from pathlib import Path

from fake_hub import HubStandIn

ROUND_TRIP = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
api = HfApi()
for _ in range(2):
    assert api.create_repo("user/model", exist_ok=True).repo_id == "user/model"
commit = api.upload_folder(repo_id="user/model", folder_path=sys.argv[1], commit_message="first")
folder = Path(snapshot_download("user/model"))
assert (folder / "parts" / "weights.bin").read_bytes() == bytes(range(256)) * 1000
assert Path(hf_hub_download("user/model", "config.json", revision=commit.oid)).read_text() == "{}"
api.delete_file("config.json", "user/model")
assert api.list_repo_files("user/model") == ["README.md", "parts/weights.bin"]
assert not api.file_exists("user/model", "config.json")
try:
    api.model_info("user/missing")
except RepositoryNotFoundError:
    print("done")
"""


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    (folder / "parts" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    with HubStandIn(tmp_path) as hub:
        assert hub.run(ROUND_TRIP, str(folder)).strip() == "done"
        uploaded = hub.folder("model", "user/model")
        assert (uploaded / "README.md").read_text().endswith("A model.\n")
        assert any(request.startswith("POST /api/models/user/model/commit/main") for request in hub.requests)
