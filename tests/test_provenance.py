import subprocess

from seqvae import provenance


def test_the_commit_is_that_of_this_code_and_not_of_a_checkout_it_is_installed_in(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x", *command]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    code = tmp_path / "provenance.py"
    code.touch()
    monkeypatch.setattr(provenance, "__file__", str(code))
    git("init")
    git("commit", "--allow-empty", "-m", "a project of its own")
    assert provenance.provenance()["versions"]["commit"] is None
    git("add", code.name)
    git("commit", "-m", "the code itself")
    assert provenance.provenance()["versions"]["commit"] == git("rev-parse", "HEAD")
    code.write_text("changed")
    assert provenance.provenance()["versions"]["commit"] == git("rev-parse", "HEAD") + "-dirty"
