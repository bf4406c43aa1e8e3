import subprocess

from ivt2.callbacks.environment import hardware, peak_memory_gb, revision, versions


def test_revision_of_a_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert revision(tmp_path) == {"commit": "unknown", "dirty": "unknown"}  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = revision(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] == "no"
    (tmp_path / "a").write_text("2")
    assert revision(tmp_path) == clean | {"dirty": "yes"}


def test_outside_a_checkout_or_without_git(tmp_path, monkeypatch):
    assert revision(tmp_path)["commit"] == "unknown"
    monkeypatch.setenv("PATH", "")
    assert revision(tmp_path)["dirty"] == "unknown"


def test_facts_of_this_machine():
    assert hardware()["cpus"] >= 1
    assert versions()["torch"].startswith("2.")
    assert versions()["flash-attn"]
    before = peak_memory_gb()["peak_memory_gb"]
    assert 0.05 < before < 100
    block = bytearray(b"1" * 50_000_000)
    assert peak_memory_gb()["peak_memory_gb"] >= before
    assert len(block) == 50_000_000
