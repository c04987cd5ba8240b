"""`da3gs completion`: scripts that complete commands, flags and values in bash, zsh and tcsh.

All words stand in the script, so that pressing TAB starts no Python.
"""

import importlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from da3gs.cli.arguments import GLOBAL_FLAGS, Option, command_options
from da3gs.cli.console import print_result


@dataclass
class CompletionCommand:
    """Print a script that completes commands, flags and their values when TAB is pressed.

    Examples:
      da3gs completion bash >> ~/.bash_completion
      eval "$(da3gs completion zsh)"          (in ~/.zshrc, after compinit)
      da3gs completion tcsh >> ~/.tcshrc
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "tcsh"]], arg(metavar="SHELL")]
    """bash, zsh or tcsh."""

    def run(self) -> int:
        scripts = {"bash": bash_script, "zsh": zsh_script, "tcsh": tcsh_script}
        print_result(scripts[self.shell](known_words()).rstrip("\n"))
        return 0


@dataclass(frozen=True)
class CommandWords:
    """What can follow a command.

    Attributes:
        summary: One line for shells that show one.
        flags: All of them.
        choices: Flag -> its values, for flags with a few.
        values: Words for the first positional argument.
    """

    summary: str
    flags: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]
    values: tuple[str, ...]


def known_words() -> dict[str, CommandWords]:
    """Every command with its flags. Imports all commands, which load nothing heavy."""
    from da3gs.cli.main import COMMANDS
    from da3gs.model.presets import known_names

    words = {}
    for name, command in COMMANDS.items():
        options = command_options(getattr(importlib.import_module(command.module), command.class_name))
        flags = [option for option in options if option.flag]
        choices = {option.flag: option.choices for option in flags if option.choices}
        if "--model" in {option.flag for option in flags}:
            choices["--model"] = tuple(known_names())
        words[name] = CommandWords(
            command.summary, (*(option.flag for option in flags), *GLOBAL_FLAGS), choices, _values(name, options)
        )
    return words


def _values(name: str, options: tuple[Option, ...]) -> tuple[str, ...]:
    if name == "train":
        from da3gs.config import shipped_configs

        return tuple(shipped_configs())
    return next((option.choices for option in options if not option.flag), ())


def bash_script(words: Mapping[str, CommandWords]) -> str:
    """For bash 3.2 and newer."""
    groups = "|".join(_groups(words))
    return f"""\
# da3gs completion for bash
_da3gs() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command= place=0 found=
    COMPREPLY=()
    for ((place = 1; place < COMP_CWORD; place++)); do
        if [[ ${{COMP_WORDS[place]}} == -* ]]; then continue; fi
        command="${{command:+$command }}${{COMP_WORDS[place]}}"
        case $command in {groups}) ;; *) break ;; esac
    done
    if [[ -z $command ]]; then
        COMPREPLY=( $(compgen -W {_quoted((*_first_words(words), *GLOBAL_FLAGS, "--version"))} -- "$cur") )
        return
    fi
    case $command in
{_cases(_groups(words), '        {}) COMPREPLY=( $(compgen -W {} -- "$cur") ); return ;;')}
    esac
    case "$command $prev" in
{_cases(_choice_words(words), '        "{}") found={} ;;')}
    esac
    if [[ -z $found && $cur == -* ]]; then
        case $command in
{_cases({name: entry.flags for name, entry in words.items()}, '            "{}") found={} ;;')}
        esac
    elif [[ -z $found && $((place + 1)) == $COMP_CWORD ]]; then
        case $command in
{_cases(_first_values(words), '            "{}") found={} ;;')}
        esac
    fi
    # Nothing found: bash completes file names.
    if [[ -n $found ]]; then COMPREPLY=( $(compgen -W "$found" -- "$cur") ); fi
}}
complete -o bashdefault -o default -F _da3gs da3gs
"""


def zsh_script(words: Mapping[str, CommandWords]) -> str:
    """For zsh with its completion system on: evaluated, or kept as a file `_da3gs` on fpath."""
    summaries = {name: f"{' or '.join(members)}" for name, members in _groups(words).items()}
    summaries = {name: summaries.get(name) or words[name].summary for name in _first_words(words)}
    described = "\n".join(f"        {_quoted((f'{name}:{summary}',))}" for name, summary in summaries.items())
    groups = "|".join(_groups(words))
    return f"""\
#compdef da3gs
_da3gs() {{
    local command= found= place
    local -a commands
    commands=(
{described}
    )
    for ((place = 2; place < CURRENT; place++)); do
        if [[ $words[place] == -* ]]; then continue; fi
        command="${{command:+$command }}$words[place]"
        case $command in {groups}) ;; *) break ;; esac
    done
    if [[ -z $command ]]; then
        if [[ $PREFIX == -* ]]; then compadd -- {" ".join((*GLOBAL_FLAGS, "--version"))}
        else _describe command commands; fi
        return
    fi
    case $command in
{_cases(_groups(words), "        {}) compadd -- ${{=:-{}}}; return ;;")}
    esac
    case "$command $words[CURRENT-1]" in
{_cases(_choice_words(words), '        "{}") found={} ;;')}
    esac
    if [[ -z $found && $PREFIX == -* ]]; then
        case $command in
{_cases({name: entry.flags for name, entry in words.items()}, '            "{}") found={} ;;')}
        esac
    elif [[ -z $found && $((place + 1)) == $CURRENT ]]; then
        case $command in
{_cases(_first_values(words), '            "{}") found={} ;;')}
        esac
    fi
    if [[ -n $found ]]; then compadd -- ${{=found}}; else _files; fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _da3gs "$@"; else compdef _da3gs da3gs; fi
"""


def tcsh_script(words: Mapping[str, CommandWords]) -> str:
    """For tcsh. Flags are those of the command on the line; values belong to a flag whatever the command."""
    # The rule c/--/ adds its words behind the dashes.
    flags: dict[str, list[str]] = {}
    for name, entry in words.items():
        known = flags.setdefault(name.split()[0], [])
        known += [flag[2:] for flag in entry.flags if flag[2:] not in known]
    cases = " ".join(f"{name}) echo {' '.join(names)};;" for name, names in flags.items())
    choices: dict[str, list[str]] = {}
    for entry in words.values():
        for flag, values in entry.choices.items():
            known = choices.setdefault(flag, [])
            known += [value for value in values if value not in known]
    rules = [f"'n/{flag}/({' '.join(values)})/'" for flag, values in choices.items()]
    followers = _groups(words) | _first_values(words)
    rules += [f"'n/{name}/({' '.join(values)})/'" for name, values in followers.items()]
    return (
        "# da3gs completion for tcsh\n"
        f"setenv DA3GS_FLAGS 'set -- $COMMAND_LINE; case $2 in {cases} esac'\n"
        f"complete da3gs 'p/1/({' '.join(_first_words(words))})/' {' '.join(rules)} 'c/--/`sh -c \"$DA3GS_FLAGS\"`/'\n"
    )


def _choice_words(words: Mapping[str, CommandWords]) -> dict[str, tuple[str, ...]]:
    """ "command --flag" -> the values of that flag."""
    return {f"{name} {flag}": values for name, entry in words.items() for flag, values in entry.choices.items()}


def _first_words(words: Mapping[str, CommandWords]) -> list[str]:
    """What can follow "da3gs"."""
    return list(dict.fromkeys(name.split()[0] for name in words))


def _groups(words: Mapping[str, CommandWords]) -> dict[str, tuple[str, ...]]:
    """First words of commands of two -> their second words."""
    pairs = [name.split() for name in words if " " in name]
    return {first: tuple(second for other, second in pairs if other == first) for first, _ in pairs}


def _first_values(words: Mapping[str, CommandWords]) -> dict[str, tuple[str, ...]]:
    return {name: entry.values for name, entry in words.items() if entry.values}


def _cases(choices: Mapping[str, tuple[str, ...]], line: str) -> str:
    return "\n".join(line.format(name, _quoted(values)) for name, values in choices.items())


def _quoted(values: tuple[str, ...]) -> str:
    return shlex.quote(" ".join(values))
