"""The hub on loopback satisfies the client libraries, and refuses what the Hub refuses."""

import json

import pytest
from miniatures.hub_server import hub_server


pytestmark = pytest.mark.hub

FOLDER_OF_PARQUET = """
import datasets, json, pathlib, sys
folder = pathlib.Path({folder!r})
(folder / "data").mkdir(parents=True)
for shard in range(2):
    rows = {{"number": [2 * shard, 2 * shard + 1], "text": ["a", "b"]}}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "data" / f"train-0000{{shard}}-of-00002.parquet")
(folder / "README.md").write_text("---\\nlicense: cc-by-4.0\\n---\\n# Numbers\\n")
from huggingface_hub import HfApi
HfApi().create_repo("tester/numbers", repo_type="dataset")
HfApi().upload_folder(folder_path=folder, repo_id="tester/numbers", repo_type="dataset")
"""
LOAD = """
import datasets, json
whole = datasets.load_dataset("tester/numbers", split="train")["number"][:]
streamed = [row["number"] for row in datasets.load_dataset("tester/numbers", split="train", streaming=True)]
print(json.dumps([whole, streamed]))
"""


def last_line(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_folder_of_parquet_goes_up_and_load_dataset_reads_it_streamed_whole_and_offline(tmp_path):
    with hub_server() as hub:
        assert (
            last_line(hub.run(FOLDER_OF_PARQUET.format(folder=str(tmp_path / "numbers")) + LOAD)) == [[0, 1, 2, 3]] * 2
        )
        assert sorted(hub.files("tester/numbers")) == [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
        ]
        hub.requests.clear()
        assert last_line(hub.run(LOAD, HF_HUB_OFFLINE="1"))[0] == [0, 1, 2, 3]
        assert hub.requests == []


def test_a_dataset_is_pushed_from_memory_and_again_to_another_branch():
    code = """
        import datasets, json
        datasets.Dataset.from_dict({"number": [1]}).push_to_hub("tester/one")
        datasets.Dataset.from_dict({"number": [1, 2]}).push_to_hub("tester/one", revision="more")
        read = [datasets.load_dataset("tester/one", split="train", revision=r)["number"][:] for r in ("main", "more")]
        print(json.dumps(read))
    """
    with hub_server() as hub:
        assert last_line(hub.run(code)) == [[1], [1, 2]]
        assert hub.files("tester/one", "more") != hub.files("tester/one")


def test_a_large_file_comes_from_another_origin_in_parts_and_without_the_token():
    code = """
        import json
        from huggingface_hub import HfFileSystem, hf_hub_download
        with HfFileSystem().open("datasets/tester/large/a.bin", block_size=1000) as file:
            file.seek(50_000)
            part = list(file.read(5))
        path = hf_hub_download("tester/large", "a.bin", repo_type="dataset")
        print(json.dumps([part, open(path, "rb").read() == bytes(range(256)) * 400]))
    """
    with hub_server() as hub:
        hub.put("tester/large", "a.bin", bytes(range(256)) * 400)
        assert last_line(hub.run(code)) == [[80, 81, 82, 83, 84], True]
        assert any(request.startswith(f"GET {hub.storage}/lfs/") for request in hub.requests)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("HfApi().dataset_info('tester/none')", "RepositoryNotFoundError"),
        ("HfApi().dataset_info('tester/small', revision='none')", "RevisionNotFoundError"),
        ("hf_hub_download('tester/small', 'none.bin', repo_type='dataset')", "EntryNotFoundError"),
        ("HfApi(token='wrong').create_repo('tester/b', repo_type='dataset')", "HfHubHTTPError"),
        ("HfApi().create_repo('tester/small', repo_type='dataset')", "HfHubHTTPError"),
        ("get_session().get(STORAGE, headers={'Authorization': 'Bearer x'}).raise_for_status()", "HTTPStatusError"),
        ("get_session().put(STORAGE, content=b'other').raise_for_status()", "HTTPStatusError"),
        ("hf_hub_download('tester/small', 'a.bin', repo_type='dataset')", "OSError"),
    ],
)
def test_it_refuses_what_the_hub_refuses(code, name, shared_hub):
    start = (
        f"from huggingface_hub import HfApi, get_session, hf_hub_download\nSTORAGE = {shared_hub.storage!r} + '/lfs/0'"
    )
    result = shared_hub.run(
        f"{start}\ntry:\n    {code}\nexcept Exception as error:\n    print([c.__name__ for c in type(error).__mro__])"
    )
    assert name in result.stdout, result.stdout + result.stderr


@pytest.fixture(scope="module")
def shared_hub():
    with hub_server() as hub:
        hub.put("tester/small", "a.bin", b"0123456789" * 100)
        # the last of the refusals: a connection that ends early
        hub.cut = 500
        yield hub
