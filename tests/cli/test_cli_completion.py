"""`da3gs completion`: the bash script in bash, the others as far as their shells are here."""

import shutil
import subprocess
import sys

import pytest

from da3gs.cli.completion import known_words
from da3gs.cli.main import COMMANDS, main

SHELLS = ("bash", "zsh", "tcsh")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "da3gs.bash"
    done = subprocess.run(
        [sys.executable, "-c", "from da3gs.cli.main import main; raise SystemExit(main(['completion', 'bash']))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    path.write_text(done.stdout)
    return path


@pytest.fixture
def complete(bash_script, tmp_path):
    """What bash offers for a line whose last word is being typed, as readline calls the function."""
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    (tmp_path / "photos").mkdir()

    def run(line: str) -> list[str]:
        words = line.split(" ")
        code = f"""
            source '{bash_script}'
            complete -p da3gs >&2
            COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
            COMP_LINE='{line}'; COMP_POINT={len(line)}
            _da3gs da3gs "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            [bash, "--norc", "-u", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "complete -o bashdefault -o default -F _da3gs da3gs"
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("da3gs rec", ["reconstruct"]),
        ("da3gs re", ["reconstruct", "refine", "render"]),
        ("da3gs --debug inf", ["info"]),
        ("da3gs --ver", ["--version"]),
        ("da3gs reconstruct --out", ["--output"]),
        ("da3gs reconstruct photos --max", ["--max-views", "--max-gaussians"]),
        ("da3gs --quiet reconstruct --memory ad", ["adapt"]),
        ("da3gs reconstruct --model da3-la", ["da3-large", "da3-large-1.1"]),
        ("da3gs render scene.ply --trajectory d", ["dolly", "dolly-zoom"]),
        ("da3gs render scene.ply --up -", ["-y", "-z", "-x"]),
        ("da3gs train smo", ["smoke_cpu"]),
        ("da3gs completion ", list(SHELLS)),
        ("da3gs demo --no", ["--no-video"]),
        ("da3gs doctor --no", ["--no-network"]),
        ("da3gs eval", ["evaluate"]),
        ("da3gs evaluate ", ["nvs", "pose", "recon", "depth"]),
        ("da3gs evaluate --debug n", ["nvs"]),
        ("da3gs evaluate nvs --hold", ["--hold-out"]),
        ("da3gs evaluate depth scenes --given ref", ["refined"]),
        ("da3gs evaluate nvs sce", []),
        ("da3gs info pho", []),  # nothing of ours: readline goes on with file names
        ("da3gs reconstruct --output pho", []),
        ("da3gs train smoke_cpu smo", []),
    ],
)
def test_bash_offers(complete, line, offered):
    assert complete(line) == offered


def test_every_command_and_no_other(complete):
    first = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    assert complete("da3gs ")[: len(first)] == first


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_name_every_flag_and_parse(capsys, tmp_path, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, words in known_words().items():
        assert all(word in script for word in name.split())
        assert all(flag.removeprefix("--") in script for flag in words.flags)
        assert {"--help", "--quiet", "--debug"} <= set(words.flags)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        checked = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
        assert checked.returncode == 0 and checked.stderr == ""


def test_the_words_are_those_the_parsers_take(capsys):
    """Every flag that is offered is in the help of its command, and the other way round."""
    import re

    for name, words in known_words().items():
        assert main([*name.split(), "--help"]) == 0
        shown = set(re.findall(r"(?<![\w`'-])--[a-z][a-z-]+", capsys.readouterr().out.split("Examples:")[-1]))
        assert set(words.flags) - shown == set(), name


def test_the_script_is_made_without_heavy_imports():
    code = (
        "import sys; from da3gs.cli.main import main; main(['completion', 'bash']);"
        "print(*({'torch', 'numpy', 'numba', 'yaml', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fish"], "SHELL must be one of bash, zsh, tcsh; got 'fish'"),
        (["zhs"], "did you mean 'zsh'?"),
        ([], "missing SHELL"),
    ],
)
def test_unknown_shell(capsys, arguments, message):
    assert main(["completion", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
